#include "ops/gdn_fused.cuh"

// Forward: 1 / RMS of every token, then phases A (each frame's P, A, Pz, b), B (the scans, in
// gdn_fused_scan.cu) and C (each token reads the state, is divided and gated). A write strength enters as
// its root on both sides of a product, which keeps P and Pz symmetric: half their blocks are computed.
namespace rivulet::cuda {
namespace {

// --- 1 / RMS ---------------------------------------------------------------------------------------------
constexpr int kRowsPerBlock = 8, kLoads = 9;  // loads of a lane on their way together

// A warp per token of q (blockIdx.y 0) or k (1); the block's threads also pack their share of the angles.
__global__ void __launch_bounds__(32 * kRowsPerBlock)
    token_scale_kernel(FusedSizes n, FusedRows q, FusedRows k, float eps, float* r, int angle_count,
                       const float* cos, const float* sin, uint32_t* angles) {
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
        v[i] = first + 256 * i < channels ? __ldg(reinterpret_cast<const uint4*>(p + first + 256 * i)) : uint4{};
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        for (const uint32_t w : {v[i].x, v[i].y, v[i].z, v[i].w}) {
          const float2 f = unpack2(w);
          sum += f.x * f.x + f.y * f.y;
        }
    }
    sum = warp_reduce(sum, Plus{});
    if (lane == 0) r[blockIdx.y * n.tokens() + row] = rsqrtf(sum / float(channels) + eps);
  }
  const int threads = int(gridDim.x * gridDim.y * blockDim.x),
            first = int((blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x);
  for (int i = first; i < angle_count; i += threads) {
    const __half2 x = __floats2half2_rn(cos[i], sin[i]);
    angles[i] = reinterpret_cast<const uint32_t&>(x);
  }
}

// --- Phase A ---------------------------------------------------------------------------------------------
constexpr int kSumThreads = 256, kSumTokens = 32;

template <int D>
struct SumTraits {
  static constexpr int kBlocks = D / 16;      // 16 x 16 blocks along a side
  static constexpr int kHalf = (kBlocks + 1) / 2;
  static constexpr int kPieces = D / 8;       // 16-byte pieces of a token
  static constexpr int kTokensPerPass = kSumThreads / kPieces >= 32 ? 32 : kSumThreads / kPieces / 16 * 16;
  static constexpr int kPasses = kSumTokens / kTokensPerPass;
  static constexpr int kTile = kSumTokens * padded(D);  // elements of one operand's tile
  static constexpr size_t kShared = std::max<size_t>(2 * 3 * kTile * sizeof(half_t),
                                                     (D * D + kTokensPerPass * D) * sizeof(float));
};

// What a thread has fetched for one token: its 8 channels of k and v, their angles, scale and strength.
struct SumPiece {
  uint4 k, v, angle;
  float r, beta;
};

// The blocks (i, i + shift) of X'X for shifts 2 kWhich and 2 kWhich + 1; the other half follows by symmetry.
template <int D, int kWhich, class F>
__device__ void for_symmetric_blocks(F&& f) {
  constexpr int kBlocks = D / 16;
#pragma unroll
  for (int i = 0; i < kBlocks; ++i)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int shift = 2 * kWhich + s;
      if (shift <= kBlocks / 2 && !(2 * shift == kBlocks && i >= kBlocks / 2) && !(shift > 0 && kBlocks == 1))
        f(2 * i + s, i, (i + shift) % kBlocks);
    }
}
__device__ inline void mma_block(float* acc, const Frag& a, const Frag& b) {
  mma(acc, a, b.r[0], b.r[2]);
  mma(acc + 4, a, b.r[1], b.r[3]);
}
template <int D, int kWhich>
__device__ void add_symmetric(float (&acc)[16][8], const half_t* x) {
#pragma unroll
  for (int k0 = 0; k0 < kSumTokens; k0 += 16) {
    Frag f[D / 16];
#pragma unroll
    for (int i = 0; i < D / 16; ++i) f[i] = tokens_frag<D>(x, k0, 16 * i);
    for_symmetric_blocks<D, kWhich>([&](int at, int i, int j) { mma_block(acc[at], f[i], f[j]); });
  }
}
// Quadrant (row, column) of V'K: at most kHalf x kHalf blocks.
template <int D>
__device__ void add_quadrant(float (&acc)[16][8], const half_t* v, const half_t* k, int row, int column) {
  constexpr int kBlocks = SumTraits<D>::kBlocks, kHalf = SumTraits<D>::kHalf;
#pragma unroll
  for (int k0 = 0; k0 < kSumTokens; k0 += 16) {
    Frag b[kHalf];
#pragma unroll
    for (int j = 0; j < kHalf; ++j)
      if (column * kHalf + j < kBlocks) b[j] = tokens_frag<D>(k, k0, 16 * (column * kHalf + j));
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      if (row * kHalf + i >= kBlocks) continue;
      const Frag a = tokens_frag<D>(v, k0, 16 * (row * kHalf + i));
#pragma unroll
      for (int j = 0; j < kHalf; ++j)
        if (column * kHalf + j < kBlocks) mma_block(acc[kHalf * i + j], a, b[j]);
    }
  }
}

// f(row, column, value) for a 16 x 16 block at (i0, j0).
template <class F>
__device__ void for_block(const float* acc, int i0, int j0, F&& f) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int e = 0; e < 8; ++e)
    f(i0 + lane / 4 + e % 4 / 2 * 8, j0 + e / 4 * 8 + lane % 4 * 2 + e % 2, acc[e]);
}

// A cluster of kSplit blocks per cell, each with its share of the frame's tokens; the partial sums meet in
// shared memory and are added in order. Warps 0, 1: Pz; 2, 3: P; 4 .. 7: A' [value, key].
template <int D, int kSplit>
__global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kSumThreads, 1)
    sum_frame_kernel(FusedSizes n, FusedRows k, FusedRows v, BetaLogits logits, const float* norm,
                     const float* r, const uint32_t* angles, float key_scale, half_t* p, float* p_z, float* a,
                     float* b) {
  using Traits = SumTraits<D>;
  constexpr int kPieces = Traits::kPieces, kPasses = Traits::kPasses, kTile = Traits::kTile;
  extern __shared__ __align__(16) unsigned char shared[];
  half_t* tiles = reinterpret_cast<half_t*>(shared);
  const FusedCell cell(int(blockIdx.x) / kSplit, n);
  const int rank = int(blockIdx.x) % kSplit, warp = int(threadIdx.x) / 32;
  const int tile_count = (n.s + kSumTokens - 1) / kSumTokens, begin = tile_count * rank / kSplit,
            end = tile_count * (rank + 1) / kSplit;
  const int my_token = int(threadIdx.x) / kPieces, piece = int(threadIdx.x) % kPieces;
  const bool loads = my_token < Traits::kTokensPerPass;

  float weight[8], b_sum[8] = {}, acc[16][8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) weight[i] = norm[cell.h * D + 8 * piece + i];
  SumPiece next[kPasses];
  const auto fetch = [&](int tile) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = tile * kSumTokens + pass * Traits::kTokensPerPass + my_token;
      SumPiece& x = next[pass];
      x = {};
      if (!loads || token >= n.s) continue;
      x.k = __ldg(reinterpret_cast<const uint4*>(k.at(cell, D, token) + 8 * piece));
      x.v = __ldg(reinterpret_cast<const uint4*>(v.at(cell, D, token) + 8 * piece));
      x.angle = __ldg(reinterpret_cast<const uint4*>(angles + int64_t(cell.place(n) + token) * (D / 2)) + piece);
      x.r = r[n.tokens() + cell.token(n) + token];
      x.beta = logits.beta(cell, token);
    }
  };
  const auto put = [&](half_t* to) {
    if (!loads) return;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const SumPiece& x = next[pass];
      const float root = sqrtf(x.beta), scale = x.r * key_scale * root;
      const uint32_t kw[4] = {x.k.x, x.k.y, x.k.z, x.k.w}, vw[4] = {x.v.x, x.v.y, x.v.z, x.v.w},
                     aw[4] = {x.angle.x, x.angle.y, x.angle.z, x.angle.w};
      uint32_t plain[4], turned[4], values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 raw = unpack2(kw[i]), turn = unpack_angle(aw[i]), value = unpack2(vw[i]);
        const float f0 = fmaxf(raw.x * weight[2 * i], 0.0f) * scale,
                    f1 = fmaxf(raw.y * weight[2 * i + 1], 0.0f) * scale;
        b_sum[2 * i] += f0 * root;
        b_sum[2 * i + 1] += f1 * root;
        plain[i] = pack2(f0, f1);
        turned[i] = pack2(f0 * turn.x - f1 * turn.y, f0 * turn.y + f1 * turn.x);
        values[i] = pack2(value.x * root, value.y * root);
      }
      half_t* at = to + (pass * Traits::kTokensPerPass + my_token) * padded(D) + 8 * piece;
      *reinterpret_cast<uint4*>(at) = {plain[0], plain[1], plain[2], plain[3]};
      *reinterpret_cast<uint4*>(at + kTile) = {turned[0], turned[1], turned[2], turned[3]};
      *reinterpret_cast<uint4*>(at + 2 * kTile) = {values[0], values[1], values[2], values[3]};
    }
  };

  if (begin < end) {
    fetch(begin);
    put(tiles);
    if (begin + 1 < end) fetch(begin + 1);
    __syncthreads();
  }
  for (int tile = begin; tile < end; ++tile) {
    const half_t* x = tiles + (tile - begin) % 2 * 3 * kTile;
    if (tile + 1 < end) put(tiles + (tile + 1 - begin) % 2 * 3 * kTile);
    if (tile + 2 < end) fetch(tile + 2);
    const half_t* features = x + (warp < 2 ? 0 : kTile);
    if (warp >= 4)
      add_quadrant<D>(acc, x + 2 * kTile, x + kTile, (warp - 4) / 2, warp % 2);
    else if (warp % 2 == 0)
      add_symmetric<D, 0>(acc, features);
    else
      add_symmetric<D, 1>(acc, features);
    __syncthreads();
  }

  const auto cluster = cooperative_groups::this_cluster();
  float* sums = reinterpret_cast<float*>(shared);  // one D x D matrix at a time, then the parts of b
  float* parts = sums + D * D;
  if (loads)
#pragma unroll
    for (int i = 0; i < 8; ++i) parts[my_token * D + 8 * piece + i] = b_sum[i];
#pragma unroll 1
  for (int what = 0; what < 3; ++what) {
    if (what < 2 && warp / 2 == what) {
      const auto write = [&](int at, int i, int j) {
        for_block(acc[at], 16 * i, 16 * j, [&](int row, int column, float x) {
          sums[row * D + column] = x;
          if (i != j) sums[column * D + row] = x;
        });
      };
      if (warp % 2 == 0)
        for_symmetric_blocks<D, 0>(write);
      else
        for_symmetric_blocks<D, 1>(write);
    } else if (what == 2 && warp >= 4) {
      constexpr int kHalf = Traits::kHalf;
      const int i0 = (warp - 4) / 2 * kHalf, j0 = warp % 2 * kHalf;
#pragma unroll
      for (int i = 0; i < kHalf; ++i)
#pragma unroll
        for (int j = 0; j < kHalf; ++j)
          if (i0 + i < Traits::kBlocks && j0 + j < Traits::kBlocks)
            for_block(acc[kHalf * i + j], 16 * (i0 + i), 16 * (j0 + j),
                      [&](int row, int column, float x) { sums[row * D + column] = x; });
    }
    cluster.sync();
    const int64_t square = int64_t(cell.index) * D * D;
    constexpr int kShare = D * D / 4 / kSplit;
    for (int i = rank * kShare + int(threadIdx.x); i < (rank + 1) * kShare; i += kSumThreads) {
      float4 total = {};
#pragma unroll
      for (int source = 0; source < kSplit; ++source) {
        const float4 x = reinterpret_cast<const float4*>(cluster.map_shared_rank(sums, source))[i];
        total = {total.x + x.x, total.y + x.y, total.z + x.z, total.w + x.w};
      }
      if (what == 1)
        reinterpret_cast<uint2*>(p + square)[i] = {pack2(total.x, total.y), pack2(total.z, total.w)};
      else
        reinterpret_cast<float4*>((what == 0 ? p_z : a) + square)[i] = total;
    }
    if (what == 0 && rank == 0 && threadIdx.x < D) {
      float total = 0;
      for (int source = 0; source < kSplit; ++source) {
        const float* from = cluster.map_shared_rank(parts, source) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < Traits::kTokensPerPass; ++i) total += from[i * D];
      }
      b[cell.index * D + int(threadIdx.x)] = total;
    }
    cluster.sync();
  }
}

// --- Phase C ---------------------------------------------------------------------------------------------
constexpr int kReadWarps = 7, kReadRounds = 2, kReadTokens = 16 * kReadWarps * kReadRounds;

// A warp takes 16 tokens at a time: num = Qr (M + R) on tensor cores, den = q . (z + zr) beside it.
template <int D>
__global__ void __launch_bounds__(32 * kReadWarps, 2)
    read_kernel(FusedSizes n, FusedRows q, FusedRows gate, const float* norm, const float* r,
                const uint32_t* angles, const float* m, const float* r_m, const float* z, const float* r_z,
                float eps, half_t* out) {
  extern __shared__ __align__(16) unsigned char shared[];
  half_t* state = reinterpret_cast<half_t*>(shared);  // [value slot][key slot]
  float* z_sum = reinterpret_cast<float*>(state + D * padded(D));
  float* weight = z_sum + D;
  const int tiles = (n.s + kReadTokens - 1) / kReadTokens;
  const FusedCell cell(int(blockIdx.x) / tiles, n);
  const int first = int(blockIdx.x) % tiles * kReadTokens + int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4;
  const int64_t square = int64_t(cell.index) * D * D;

  Share<D> raw[2];
  const auto fetch = [&](const FusedRows& x, int token, Share<D> (&to)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      to[half] = load_share<D>(x.at(cell, D, token + 8 * half), token + 8 * half < n.s);
  };
  fetch(q, first, raw);
  fill_slots<D>(state, [&](int i, int j) {
    const float4 x = *reinterpret_cast<const float4*>(m + square + i * D + j),
                 y = *reinterpret_cast<const float4*>(r_m + square + i * D + j);
    return float4{x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
  });
  for (int i = int(threadIdx.x); i < D; i += int(blockDim.x)) {
    z_sum[i] = z[cell.index * D + i] + r_z[cell.index * D + i];
    weight[i] = norm[cell.h * D + i];
  }
  __syncthreads();

#pragma unroll 1
  for (int round = 0; round < kReadRounds; ++round) {
    const int token = first + round * 16 * kReadWarps;
    if (token - int(threadIdx.x) % 32 / 4 >= n.s) return;
    Frag turned[D / 16];
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = token + 8 * half;
      const bool valid = at < n.s;
      const Share<D> angle = load_share<D>(angles + int64_t(cell.place(n) + at) * (D / 2), valid);
      const float rms = valid ? r[cell.token(n) + at] : 0;
      float den = 0;
      Share<D> row;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const int channel = owned_channel<D>(t);
        const float2 x = unpack2(raw[half].w[t]), turn = unpack_angle(angle.w[t]);
        const float f0 = fmaxf(x.x * weight[channel], 0.0f) * rms,
                    f1 = fmaxf(x.y * weight[channel + 1], 0.0f) * rms;
        den += f0 * z_sum[channel] + f1 * z_sum[channel + 1];
        row.w[t] = pack2(f0 * turn.x - f1 * turn.y, f0 * turn.y + f1 * turn.x);
      }
      put_rows<D>(turned, row, half);
      scale[half] = 1.0f / (quad_sum(den) + eps);
    }
    Share<D> open[2];
    fetch(gate, token, open);
    float acc[D / 8][4] = {};
    rows_product<D, true>(acc, turned, state);
    if (round + 1 < kReadRounds) fetch(q, token + 16 * kReadWarps, raw);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Share<D> y;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const float2 x = unpack2(open[half].w[t]);
        y.w[t] = pack2(acc[t][2 * half] * scale[half] * x.x / (1.0f + __expf(-x.x)),
                       acc[t][2 * half + 1] * scale[half] * x.y / (1.0f + __expf(-x.y)));
      }
      const int at = token + 8 * half;
      if (at < n.s) store_share<D>(out + (int64_t(cell.token(n) + at) * n.h + cell.h) * D, y);
    }
  }
}

// Into how many blocks a cell's tokens go so that the GPU's processors share the work best.
int best_split(int cells, int tiles) {
  int device = 0, processors = 0, best = 1;
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const auto turns = [&](int split) {  // of one block's time without a split
    return double((cells * split + processors - 1) / processors) / split;
  };
  for (const int split : {2, 4})
    if (split <= tiles && turns(split) < 0.95 * turns(best)) best = split;
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
         FusedRows(in.q), FusedRows(in.k), float(norm_eps), r, int(in.cos.numel()), f32(in.cos), f32(in.sin),
         angles);
  dispatch_head(n.d, [&]<int D>() {
    const auto sum = [&]<int kSplit>() {
      allow_shared(sum_frame_kernel<D, kSplit>, SumTraits<D>::kShared);
      launch({unsigned(n.cells() * kSplit), kSumThreads, SumTraits<D>::kShared}, sum_frame_kernel<D, kSplit>, n,
             FusedRows(in.k), FusedRows(in.v), BetaLogits(in.beta), f32(in.k_norm), r, angles,
             float(key_scale), p, f32(saved.p_z), f32(a), f32(b));
    };
    const int split = best_split(n.cells(), (n.s + kSumTokens - 1) / kSumTokens);
    if (split == 1) sum.template operator()<1>();
    if (split == 2) sum.template operator()<2>();
    if (split == 4) sum.template operator()<4>();

    const FusedChain forward{ChainOrder::after, f32(a),       f32(b),        f32(in.start.kv),     f32(in.start.z),
                             f32(saved.m),      f32(saved.z), f32(result.final.kv), f32(result.final.z)},
        reverse{ChainOrder::before, f32(a), f32(b), nullptr, nullptr, f32(saved.r_m), f32(saved.r_z),
                nullptr,            nullptr};
    run_fused_chains(n, p, f32(saved.p_z), f32(in.decay), forward, &reverse);

    const size_t bytes = D * padded(D) * sizeof(half_t) + 2 * D * sizeof(float);
    launch({unsigned(n.cells()) * blocks_for(n.s, kReadTokens), 32 * kReadWarps, bytes}, read_kernel<D>, n,
           FusedRows(in.q), FusedRows(in.gate), f32(in.q_norm), r, angles, f32(saved.m), f32(saved.r_m),
           f32(saved.z), f32(saved.r_z), float(eps), pointer<half_t>(result.out));
  });
}

}  // namespace rivulet::cuda
