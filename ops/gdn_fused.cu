#include "ops/gdn_fused.cuh"

// Forward: 1 / RMS of every token, phase A (each frame's P, A, Pz, b: gdn_fused_sum.cu), phase B (the scans:
// gdn_fused_scan.cu) and phase C (each token reads the state, is divided and gated).
namespace rivulet::cuda {
namespace {

// --- 1 / RMS ---------------------------------------------------------------------------------------------
constexpr int kRowsPerBlock = 8, kLoads = 9;  // loads of a lane on their way together

// A warp per token of q (blockIdx.y 0) or k (1). Those of k also make its betas, and all threads pack their
// share of the angles.
__global__ void __launch_bounds__(32 * kRowsPerBlock)
    token_scale_kernel(FusedSizes n, FusedRows q, FusedRows k, BetaLogits logits, float eps, float* r,
                       float* beta, int angle_count, const float* cos, const float* sin, uint32_t* angles) {
  const int row = int(blockIdx.x) * kRowsPerBlock + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32,
            channels = n.h * n.d;
  if (row < n.tokens()) {
    const FusedRows& x = blockIdx.y == 0 ? q : k;
    const int frame = row / n.s;
    const half_t* p = x.p + frame / n.t * x.step_b + frame % n.t * x.step_t + row % n.s * x.step_s;
    float sum = 0;
    for (int first = 8 * lane; first < channels; first += 256 * kLoads) {
      uint4 v[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        v[i] =
            first + 256 * i < channels ? __ldg(reinterpret_cast<const uint4*>(p + first + 256 * i)) : uint4{};
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        for (const uint32_t w : {v[i].x, v[i].y, v[i].z, v[i].w}) {
          const float2 f = unpack2(w);
          sum += f.x * f.x + f.y * f.y;
        }
    }
    sum = warp_reduce(sum, Plus{});
    if (lane == 0) r[blockIdx.y * n.tokens() + row] = rsqrtf(sum / float(channels) + eps);
    if (blockIdx.y == 1)
      for (int h = lane; h < n.h; h += 32)
        beta[int64_t(row) * n.h + h] = logits.beta(frame / n.t, frame % n.t, row % n.s, h);
  }
  const int threads = int(gridDim.x * gridDim.y * blockDim.x),
            first = int((blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x);
  for (int i = first; i < angle_count; i += threads) {
    const __half2 x = __floats2half2_rn(cos[i], sin[i]);
    angles[i] = reinterpret_cast<const uint32_t&>(x);
  }
}

// --- Phase C ---------------------------------------------------------------------------------------------
constexpr int kReadWarps = 7, kReadTokens = 16 * kReadWarps, kReadBlocks = 2;  // blocks on a processor

// A block takes `rounds` times kReadTokens tokens of a cell, a warp 16 at a time: num = Qr (M + R) on tensor
// cores, den = q . (z + zr) beside it. The features lack 1 / RMS, which comes in where num is divided.
template <int D>
__global__ void __launch_bounds__(32 * kReadWarps, kReadBlocks)
    read_kernel(FusedSizes n, int rounds, FusedRows q, FusedRows gate, ChannelWeights norm, const float* r,
                const uint32_t* angles, const float* m, const float* r_m, const float* z, const float* r_z,
                float eps, half_t* out) {
  extern __shared__ __align__(16) unsigned char shared[];
  half_t* state = reinterpret_cast<half_t*>(shared);  // [value slot][key slot]
  float* z_sum = reinterpret_cast<float*>(state + D * padded(D));
  float* weight = z_sum + D;
  const int tiles = (n.s + rounds * kReadTokens - 1) / (rounds * kReadTokens);
  const FusedCell cell(int(blockIdx.x) / tiles, n);
  const int first = int(blockIdx.x) % tiles * rounds * kReadTokens + int(threadIdx.x) / 32 * 16;
  const int64_t square = int64_t(cell.index) * D * D;
  // The rows that a warp reads next are asked for while it works on these.
  const auto ask = [&](int start) {
    constexpr int kSector = 16, kSectors = D / kSector;  // 32 bytes
    for (int i = int(threadIdx.x) % 32; i < 16 * kSectors; i += 32) {
      const int token = start + i / kSectors, channel = i % kSectors * kSector;
      if (token >= n.s) return;
      prefetch_to_l2(q.at(cell, D, token) + channel);
      prefetch_to_l2(gate.at(cell, D, token) + channel);
    }
  };
  ask(first);
  fill_slots<D, 32 * kReadWarps>(state, [&](int i, int j) {
    const float4 x = *reinterpret_cast<const float4*>(m + square + i * D + j),
                 y = *reinterpret_cast<const float4*>(r_m + square + i * D + j);
    return float4{x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
  });
  for (int i = int(threadIdx.x); i < D; i += int(blockDim.x)) {
    z_sum[i] = z[cell.index * D + i] + r_z[cell.index * D + i];
    weight[i] = norm.at(cell.h * D + i);
  }
  __syncthreads();

#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    const int start = first + round * kReadTokens, token = start + int(threadIdx.x) % 32 / 4;
    if (start >= n.s) return;
    if (round + 1 < rounds) ask(start + kReadTokens);
    Frag turned[D / 16];
    float scale[2];
    {
      Share<D> raw[2], angle[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = token + 8 * half;
        raw[half] = load_share<D>(q.at(cell, D, at), at < n.s);
        angle[half] = load_share<D>(angles + int64_t(cell.place(n) + at) * (D / 2), at < n.s);
        scale[half] = at < n.s ? r[cell.token(n) + at] : 0;
      }
      float den[2] = {};
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const float2 w = *reinterpret_cast<const float2*>(weight + owned_channel<D>(t)),
                     s = *reinterpret_cast<const float2*>(z_sum + owned_channel<D>(t));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 x = unpack2(raw[half].w[t]), turn = unpack_angle(angle[half].w[t]);
          const float f0 = fmaxf(x.x * w.x, 0.0f), f1 = fmaxf(x.y * w.y, 0.0f);
          den[half] += f0 * s.x + f1 * s.y;
          turned[t / 2].r[t % 2 * 2 + half] = pack2(f0 * turn.x - f1 * turn.y, f0 * turn.y + f1 * turn.x);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) scale[half] /= quad_sum(den[half]) * scale[half] + eps;
    }
    Share<D> open[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      open[half] = load_share<D>(gate.at(cell, D, token + 8 * half), token + 8 * half < n.s);
    float acc[D / 8][4] = {};
    rows_product<D, true>(acc, turned, state);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Share<D> y;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const float2 x = unpack2(open[half].w[t]);
        y.w[t] = pack2(acc[t][2 * half] * (scale[half] * x.x * sigmoid_of(x.x)),
                       acc[t][2 * half + 1] * (scale[half] * x.y * sigmoid_of(x.y)));
      }
      const int at = token + 8 * half;
      if (at < n.s) store_share<D>(out + (int64_t(cell.token(n) + at) * n.h + cell.h) * D, y);
    }
  }
}

// How many rounds a block makes so that the blocks fill the GPU's processors evenly. To begin takes a block
// about as long as kStart rounds.
int best_rounds(int cells, int tokens) {
  constexpr double kStart = 1.5;
  const int slots = kReadBlocks * processors(), most = (tokens + kReadTokens - 1) / kReadTokens;
  const auto time = [&](int rounds) {
    const int blocks = cells * ((most + rounds - 1) / rounds);
    return (blocks + slots - 1) / slots * (rounds + kStart);
  };
  int best = 1;
  for (int rounds = 2; rounds <= most; ++rounds)
    if (time(rounds) < time(best)) best = rounds;
  return best;
}

}  // namespace

bool gdn_fused_takes(int64_t head_dim) { return head_dim == 32 || head_dim == 64 || head_dim == 112; }

void gdn_fused(const GdnFusedInputs& in, double key_scale, double norm_eps, double eps, GdnResult& result,
               GdnFusedSaved& saved) {
  const FusedSizes n(in);
  const auto f32 = [](const Tensor& t) { return pointer<float>(t); };
  half_t* p = pointer<half_t>(saved.p);
  float* r = f32(saved.r);
  uint32_t* angles = pointer<uint32_t>(saved.angles);
  const Tensor a = empty_like(saved.m), b = empty_like(saved.z);  // what each frame adds
  launch({dim3(blocks_for(n.tokens(), kRowsPerBlock), 2), 32 * kRowsPerBlock}, token_scale_kernel, n,
         FusedRows(in.q), FusedRows(in.k), BetaLogits(in.beta), float(norm_eps), r, f32(saved.beta),
         int(in.cos.numel()), f32(in.cos), f32(in.sin), angles);
  sum_frames(n, in, saved, float(key_scale), f32(a), f32(b));
  dispatch_head(n.d, [&]<int D>() {
    const FusedChain forward{ChainOrder::after,  f32(a),       f32(b),       f32(in.start.kv),
                             f32(in.start.z),    f32(saved.m), f32(saved.z), f32(result.final.kv),
                             f32(result.final.z)},
        reverse{ChainOrder::before, f32(a),         f32(b),  nullptr, nullptr,
                f32(saved.r_m),     f32(saved.r_z), nullptr, nullptr};
    run_fused_chains(n, p, f32(saved.p_z), f32(in.decay), forward, &reverse);

    const size_t bytes = D * padded(D) * sizeof(half_t) + 2 * D * sizeof(float);
    const int rounds = best_rounds(n.cells(), n.s);
    launch({unsigned(n.cells()) * blocks_for(n.s, rounds * kReadTokens), 32 * kReadWarps, bytes},
           read_kernel<D>, n, rounds, FusedRows(in.q), FusedRows(in.gate), ChannelWeights(in.q_norm), r,
           angles, f32(saved.m), f32(saved.r_m), f32(saved.z), f32(saved.r_z), float(eps),
           pointer<half_t>(result.out));
  });
}

}  // namespace rivulet::cuda
