#include "ops/gdn_fused.cuh"

// Backward, from the reads to the sums: each frame's gradients X, y of the states and those of q and gate;
// the scans of the gradients; the gradients of P, A, Pz, b and the decay; those of k, v and beta; the norms.
// Features are made again from the inputs. dq and dk first hold the gradients of the normed q~ and k~, and
// their products with w q~ and w k~ are gathered per head, since a norm spans all heads.
namespace rivulet::cuda {
namespace {

// Writes the lane's pair of words of each 16 columns to rows l / 4 and l / 4 + 8 of a tile of tokens.
template <int D>
__device__ void put_frags(half_t* tile, const Frag (&a)[D / 16]) {
  const int lane = int(threadIdx.x) % 32;
  half_t* at = tile + (int(threadIdx.x) / 32 * 16 + lane / 4) * padded(D) + lane % 4 * 2;
#pragma unroll
  for (int k = 0; k < D / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<uint32_t*>(at + i % 2 * 8 * padded(D) + 16 * k + i / 2 * 8) = a[k].r[i];
}

// --- Reads -----------------------------------------------------------------------------------------------
struct ReadGrads {
  half_t *dq, *dgate;
  float *dots, *x, *y;  // x [value, key], y: gradients of M + R and z + zr of every cell
};

template <int D>
constexpr size_t kReadGradShared = (D + 2 * kBackTokens) * padded(D) * sizeof(half_t) +
                                   (2 + kBackWarps) * D * sizeof(float);

// A block per cell walks through its tokens, 16 per warp at a time.
template <int D>
__global__ void __launch_bounds__(kBackThreads, 1)
    read_backward_kernel(FusedSizes n, FusedRows q, FusedRows gate, const half_t* dout, const float* norm,
                         const float* r, const uint32_t* angles, const float* m, const float* r_m,
                         const float* z, const float* r_z, float eps, ReadGrads grads) {
  extern __shared__ __align__(16) unsigned char shared[];
  half_t *state = reinterpret_cast<half_t*>(shared), *dnum_tile = state + D * padded(D),
         *turned_tile = dnum_tile + kBackTokens * padded(D);
  float *z_sum = reinterpret_cast<float*>(turned_tile + kBackTokens * padded(D)), *weight = z_sum + D,
        *y_parts = weight + D;
  const FusedCell cell(int(blockIdx.x), n);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t square = int64_t(cell.index) * D * D;
  fill_slots<D, kBackThreads>(state, [&](int i, int j) {
    const float4 a = *reinterpret_cast<const float4*>(m + square + i * D + j),
                 b = *reinterpret_cast<const float4*>(r_m + square + i * D + j);
    return float4{a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  });
  for (int i = int(threadIdx.x); i < D; i += kBackThreads) {
    z_sum[i] = z[cell.index * D + i] + r_z[cell.index * D + i];
    weight[i] = norm[cell.h * D + i];
  }
  __syncthreads();

  float x_sum[D / 16][8] = {};
  float2 y_sum[D / 8] = {};
  for (int tile = 0; tile < n.s; tile += kBackTokens) {
    const int token = tile + 16 * warp + lane / 4;
    Frag turned[D / 16];
    float inverse[2], rms[2], dden[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = token + 8 * half;
      const bool valid = at < n.s;
      const Share<D> raw = load_share<D>(q.at(cell, D, at), valid),
                     angle = load_share<D>(angles + int64_t(cell.place(n) + at) * (D / 2), valid);
      rms[half] = valid ? r[cell.token(n) + at] : 0;
      float den = 0;
      Share<D> row;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const FeaturePair pair = feature_pair<D>(raw, angle, weight, t, rms[half]);
        const float2 f = pair.plain();
        den += f.x * z_sum[owned_channel<D>(t)] + f.y * z_sum[owned_channel<D>(t) + 1];
        row.w[t] = pair.turned(f);
      }
      put_rows<D>(turned, row, half);
      inverse[half] = 1.0f / (quad_sum(den) + eps);
    }
    float acc[D / 8][4] = {};
    rows_product<D, true>(acc, turned, state);
    put_frags<D>(turned_tile, turned);
    // From here acc holds the gradient of the numerator.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = token + 8 * half;
      const bool valid = at < n.s;
      const int64_t place = (int64_t(cell.token(n) + at) * n.h + cell.h) * D;
      const Share<D> open = load_share<D>(gate.at(cell, D, at), valid),
                     dy = load_share<D>(dout + place, valid);
      Share<D> dopen;
      float dot = 0;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const float2 g = unpack2(open.w[t]), d = unpack2(dy.w[t]);
        const float ox = acc[t][2 * half] * inverse[half], oy = acc[t][2 * half + 1] * inverse[half],
                    sx = sigmoid_of(g.x), sy = sigmoid_of(g.y), dx = d.x * g.x * sx, dyy = d.y * g.y * sy;
        dopen.w[t] = pack2(d.x * ox * sx * (1 + g.x * (1 - sx)), d.y * oy * sy * (1 + g.y * (1 - sy)));
        dot += dx * ox + dyy * oy;
        acc[t][2 * half] = dx * inverse[half];
        acc[t][2 * half + 1] = dyy * inverse[half];
      }
      if (valid) store_share<D>(grads.dgate + place, dopen);
      dden[half] = -quad_sum(dot) * inverse[half];
    }
    Frag dnum[D / 16];
#pragma unroll
    for (int k = 0; k < D / 16; ++k) dnum[k] = operand<D>(acc, k);
    put_frags<D>(dnum_tile, dnum);
#pragma unroll
    for (int t = 0; t < D / 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[t][i] = 0;
    rows_product<D, false>(acc, dnum, state);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = token + 8 * half;
      const bool valid = at < n.s;
      const Share<D> raw = load_share<D>(q.at(cell, D, at), valid),
                     angle = load_share<D>(angles + int64_t(cell.place(n) + at) * (D / 2), valid);
      Share<D> dq;
      float dot = 0;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const FeaturePair pair = feature_pair<D>(raw, angle, weight, t, rms[half]);
        const float2 f = pair.plain();
        y_sum[t].x += dden[half] * f.x;
        y_sum[t].y += dden[half] * f.y;
        const int channel = owned_channel<D>(t);
        const float2 d = pair.back({acc[t][2 * half], acc[t][2 * half + 1]},
                                   {dden[half] * z_sum[channel], dden[half] * z_sum[channel + 1]}, 1.0f);
        dot += pair.product(d);
        dq.w[t] = pack2(d.x, d.y);
      }
      dot = quad_sum(dot);
      if (!valid) continue;
      const int64_t row = int64_t(cell.token(n) + at) * n.h + cell.h;
      store_share<D>(grads.dq + row * D, dq);
      if (lane % 4 == 0) grads.dots[row] = dot;
    }
    __syncthreads();
    add_strip<D>(x_sum, dnum_tile, turned_tile, kBackTokens);
    __syncthreads();
  }
  for_strip<D>(x_sum, [&](int i, int j, float2 v) {
    *reinterpret_cast<float2*>(grads.x + square + channel_of<D>(i) * D + channel_of<D>(j)) = v;
  });
#pragma unroll
  for (int t = 0; t < D / 8; ++t) {
    for (int step = 4; step < 32; step *= 2) {
      y_sum[t].x += __shfl_xor_sync(0xffffffffu, y_sum[t].x, step);
      y_sum[t].y += __shfl_xor_sync(0xffffffffu, y_sum[t].y, step);
    }
    if (lane < 4) *reinterpret_cast<float2*>(y_parts + warp * D + owned_channel<D>(t)) = y_sum[t];
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < D; i += kBackThreads) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kBackWarps; ++w) total += y_parts[w * D + i];
    grads.y[cell.index * D + i] = total;
  }
}

// --- Norms -------------------------------------------------------------------------------------------------
constexpr int kNormThreads = 288, kNormTokens = 32;  // 2240 channels, 8 a thread

// dx = r w dy - x r^3 mean(w dy x) in place of dy; parts [chunk][2][C] = sums of dy x r over a chunk of
// tokens. blockIdx.x: chunk, y: channels, z: q or k.
__global__ void __launch_bounds__(kNormThreads)
    norm_backward_kernel(FusedSizes n, FusedRows q, FusedRows k, const float* q_norm, const float* k_norm,
                         const float* r, const float* dots, half_t* dq, half_t* dk, float* parts) {
  __shared__ float pull[kNormTokens], rms[kNormTokens];
  const int what = int(blockIdx.z), channels = n.h * n.d, first = int(blockIdx.x) * kNormTokens,
            count = min(kNormTokens, n.tokens() - first), warp = int(threadIdx.x) / 32,
            lane = int(threadIdx.x) % 32;
  for (int token = warp; token < count; token += kNormThreads / 32) {
    const int64_t row = int64_t(what) * n.tokens() + first + token;
    float sum = 0;
    for (int h = lane; h < n.h; h += 32) sum += dots[row * n.h + h];
    sum = warp_reduce(sum, Plus{});
    if (lane == 0) {
      const float x = r[row];
      rms[token] = x;
      pull[token] = x * x * x * sum / float(channels);
    }
  }
  __syncthreads();
  const int channel = (int(blockIdx.y) * kNormThreads + int(threadIdx.x)) * 8;
  if (channel >= channels) return;
  const FusedRows& x = what == 0 ? q : k;
  half_t* d = what == 0 ? dq : dk;
  float weight[8], sum[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) weight[i] = (what == 0 ? q_norm : k_norm)[channel + i];
#pragma unroll 4
  for (int token = 0; token < count; ++token) {
    const int row = first + token, frame = row / n.s;
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(
        x.p + frame / n.t * x.step_b + frame % n.t * x.step_t + row % n.s * x.step_s + channel));
    uint4* at = reinterpret_cast<uint4*>(d + int64_t(row) * channels + channel);
    const uint4 dy = *at;
    const uint32_t rw[4] = {raw.x, raw.y, raw.z, raw.w}, dw[4] = {dy.x, dy.y, dy.z, dy.w};
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = unpack2(rw[i]), g = unpack2(dw[i]);
      sum[2 * i] += g.x * a.x * rms[token];
      sum[2 * i + 1] += g.y * a.y * rms[token];
      out[i] = pack2(rms[token] * weight[2 * i] * g.x - a.x * pull[token],
                     rms[token] * weight[2 * i + 1] * g.y - a.y * pull[token]);
    }
    *at = {out[0], out[1], out[2], out[3]};
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) parts[(int64_t(blockIdx.x) * 2 + what) * channels + channel + i] = sum[i];
}

}  // namespace

void gdn_fused_backward(const GdnFusedInputs& in, double key_scale, double eps, const GdnFusedSaved& saved,
                        const Tensor& dout, const GdnState& dfinal, GdnFusedInputs& grads) {
  const FusedSizes n(in);
  const auto f32 = [](const Tensor& t) { return pointer<float>(t); };
  const auto bf16s = [](const Tensor& t) { return pointer<half_t>(t); };
  const uint32_t* angles = pointer<uint32_t>(saved.angles);
  const int64_t c = n.h * n.d, tokens = n.tokens();
  const Tensor x = empty_like(saved.m), y = empty_like(saved.z), e = empty_like(saved.m),
               e_z = empty_like(saved.z), l = empty_like(saved.m), l_z = empty_like(saved.z),
               dots({2, tokens * n.h}, DType::f32, Device::cuda);
  const half_t* p = bf16s(saved.p);
  const float *p_z = f32(saved.p_z), *decay = f32(in.decay), *r = f32(saved.r);
  dispatch_head(n.d, [&]<int D>() {
    allow_shared(read_backward_kernel<D>, kReadGradShared<D>);
    launch({unsigned(n.cells()), kBackThreads, kReadGradShared<D>}, read_backward_kernel<D>, n,
           FusedRows(in.q), FusedRows(in.gate), bf16s(dout), f32(in.q_norm), r, angles, f32(saved.m),
           f32(saved.r_m), f32(saved.z), f32(saved.r_z), float(eps),
           ReadGrads{bf16s(grads.q), bf16s(grads.gate), f32(dots), f32(x), f32(y)});

    const FusedChain back{ChainOrder::around, f32(x), f32(y),   f32(dfinal.kv),
                          f32(dfinal.z),      f32(e), f32(e_z), f32(grads.start.kv),
                          f32(grads.start.z)},
        forth{ChainOrder::after, f32(x), f32(y), nullptr, nullptr, f32(l), f32(l_z), nullptr, nullptr};
    run_fused_chains(n, p, p_z, decay, back, &forth);
  });
  backward_of_frames(n, in, saved, float(key_scale), {f32(e), f32(e_z), f32(l), f32(l_z)},
                     f32(dots) + tokens * n.h, grads);
  const unsigned chunks = blocks_for(tokens, kNormTokens);
  const Tensor parts({int64_t(chunks), 2, c}, DType::f32, Device::cuda);
  launch({dim3(chunks, blocks_for(c, 8 * kNormThreads), 2), kNormThreads}, norm_backward_kernel, n,
         FusedRows(in.q), FusedRows(in.k), f32(in.q_norm), f32(in.k_norm), r, f32(dots), bf16s(grads.q),
         bf16s(grads.k), f32(parts));
  const Tensor norms = rivulet::sum_to(parts, {1, 2, c});
  grads.q_norm.copy_from(norms.select(0, 0).select(0, 0));
  grads.k_norm.copy_from(norms.select(0, 0).select(0, 1));
}

}  // namespace rivulet::cuda
