#include "ops/gdn_fused.cuh"

// Backward, from the reads to the sums: each frame's gradients X, y of the states and those of q and gate;
// the scans of the gradients; the gradients of P, A, Pz, b and the decay; those of k, v and beta; the norms.
// Features are made again from the inputs. dq and dk first hold the gradients of the normed q~ and k~, and
// their products with w q~ and w k~ are gathered per head, since a norm spans all heads.
namespace rivulet::cuda {
namespace {

constexpr int kWarps = 7, kBackThreads = 32 * kWarps, kBackTokens = 16 * kWarps;

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
__device__ inline float sigmoid_of(float x) { return 1.0f / (1.0f + __expf(-x)); }

// What turns a pair of raw channels into features, and gradients back.
struct FeaturePair {
  float2 raw, weight, turn;
  float scale;  // 1 / RMS times what the features are multiplied by
  __device__ float2 plain() const {
    return {fmaxf(raw.x * weight.x, 0.0f) * scale, fmaxf(raw.y * weight.y, 0.0f) * scale};
  }
  __device__ uint32_t turned(float2 f) const {
    return pack2(f.x * turn.x - f.y * turn.y, f.x * turn.y + f.y * turn.x);
  }
  // The gradient of the normed pair, given those of the turned and the plain features.
  __device__ float2 back(float2 dturned, float2 dplain, float factor) const {
    const float x = dturned.x * turn.x + dturned.y * turn.y + dplain.x,
                y = dturned.y * turn.x - dturned.x * turn.y + dplain.y;
    return {raw.x * weight.x > 0 ? x * factor : 0.0f, raw.y * weight.y > 0 ? y * factor : 0.0f};
  }
  __device__ float product(float2 d) const { return d.x * weight.x * raw.x + d.y * weight.y * raw.y; }
};
template <int D>
__device__ FeaturePair feature_pair(const Share<D>& raw, const Share<D>& angle, const float* weight, int t,
                                    float scale) {
  const int channel = owned_channel<D>(t);
  return {unpack2(raw.w[t]), {weight[channel], weight[channel + 1]}, unpack_angle(angle.w[t]), scale};
}

// One 16 x 16 block per (strip of this warp, j): the sum over `depth` rows of X' Y.
template <int D>
__device__ void add_strip(float (&acc)[D / 16][8], const half_t* x, const half_t* y, int depth) {
  const int strip = int(threadIdx.x) / 32;
  if (strip >= D / 16) return;
  for (int k0 = 0; k0 < depth; k0 += 16) {
    const Frag a = tokens_frag<D>(x, k0, 16 * strip);
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      const Frag b = tokens_frag<D>(y, k0, 16 * j);
      mma(acc[j], a, b.r[0], b.r[2]);
      mma(acc[j] + 4, a, b.r[1], b.r[3]);
    }
  }
}
// f(row, column, pair) for the pairs of this warp's strip.
template <int D, class F>
__device__ void for_strip(const float (&acc)[D / 16][8], F&& f) {
  const int strip = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (strip >= D / 16) return;
#pragma unroll
  for (int j = 0; j < D / 16; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      f(16 * strip + lane / 4 + e % 2 * 8, 16 * j + e / 2 * 8 + lane % 4 * 2,
        float2{acc[j][2 * e], acc[j][2 * e + 1]});
}

// --- Reads -----------------------------------------------------------------------------------------------
struct ReadGrads {
  half_t *dq, *dgate;
  float *dots, *x, *y;  // x [value, key], y: gradients of M + R and z + zr of every cell
};

template <int D>
constexpr size_t kReadGradShared = (D + 2 * kBackTokens) * padded(D) * sizeof(half_t) + (2 + kWarps) * D * sizeof(float);

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
  fill_slots<D>(state, [&](int i, int j) {
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
      const Share<D> open = load_share<D>(gate.at(cell, D, at), valid), dy = load_share<D>(dout + place, valid);
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
    for (int w = 0; w < kWarps; ++w) total += y_parts[w * D + i];
    grads.y[cell.index * D + i] = total;
  }
}

// --- Each frame's P, A, Pz, b and decay --------------------------------------------------------------------
// Histories of the states and of the gradients that reach them; starts may be null.
struct Histories {
  const float *start, *start_z, *m, *z, *r_m, *r_z, *e, *e_z, *l, *l_z;
};
struct FrameGrads {
  half_t *dp, *da, *dp_z;  // dp + dp', dp_z + dp_z' and da [value, key]
  float *db, *ddecay;
};

template <int D>
constexpr size_t kFrameShared = std::max<size_t>(4 * D * padded(D) * sizeof(half_t), D*(D + 1) * sizeof(float)) +
                                4 * D * sizeof(float);

// G = E_f M_{f-1}' + L_{f-1} R_f':   dP = -g G,   dg = sum over i, j of (I - P) G,   dA = E_f + L_{f-1}.
template <int D>
__global__ void __launch_bounds__(kBackThreads)
    frame_backward_kernel(FusedSizes n, Histories s, const half_t* p, const float* p_z, const float* decay,
                          FrameGrads grads) {
  extern __shared__ __align__(16) unsigned char shared[];
  half_t* operands = reinterpret_cast<half_t*>(shared);  // E, M, L, R [value][key]
  float *products = reinterpret_cast<float*>(shared),    // later: G
      *vectors = reinterpret_cast<float*>(shared + kFrameShared<D> - 4 * D * sizeof(float));
  const FusedCell cell(int(blockIdx.x), n);
  const int64_t square = int64_t(cell.index) * D * D, row = int64_t(cell.index) * D;
  const bool first = cell.f == 0;
  const float* before = first ? (s.start ? s.start + int64_t(cell.b * n.h + cell.h) * D * D : nullptr)
                              : s.m + square - D * D;
  const float* before_z = first ? (s.start_z ? s.start_z + int64_t(cell.b * n.h + cell.h) * D : nullptr)
                                : s.z + row - D;
  const auto value = [](const float* from, int i) {
    return from == nullptr ? float4{} : *reinterpret_cast<const float4*>(from + i);
  };
  const auto store = [&](half_t* to, int i, float4 x) {
    *reinterpret_cast<uint2*>(to + i) = {pack2(x.x, x.y), pack2(x.z, x.w)};
  };
  for (int i = 4 * int(threadIdx.x); i < D * D; i += 4 * kBackThreads) {
    const float4 e = value(s.e + square, i), l = value(first ? nullptr : s.l + square - D * D, i);
    half_t* at = operands + i / D * padded(D) + i % D;
    store(at, 0, e);
    store(at + D * padded(D), 0, value(before, i));
    store(at + 2 * D * padded(D), 0, l);
    store(at + 3 * D * padded(D), 0, value(s.r_m + square, i));
    store(grads.da + square, i, {e.x + l.x, e.y + l.y, e.z + l.z, e.w + l.w});
  }
  for (int i = int(threadIdx.x); i < D; i += kBackThreads) {
    const float e = s.e_z[row + i], l = first ? 0 : s.l_z[row - D + i];
    vectors[i] = e;
    vectors[D + i] = before_z == nullptr ? 0 : before_z[i];
    vectors[2 * D + i] = l;
    vectors[3 * D + i] = s.r_z[row + i];
    grads.db[row + i] = e + l;
  }
  __syncthreads();
  float acc[D / 16][8] = {};
  add_strip<D>(acc, operands, operands + D * padded(D), D);
  if (!first) add_strip<D>(acc, operands + 2 * D * padded(D), operands + 3 * D * padded(D), D);
  __syncthreads();
  for_strip<D>(acc, [&](int i, int j, float2 v) {
    products[i * (D + 1) + j] = v.x;
    products[i * (D + 1) + j + 1] = v.y;
  });
  __syncthreads();
  const int64_t gate = (int64_t(cell.b) * n.t + cell.f) * n.h + cell.h;
  const float g = decay[gate];
  float sum = 0;
  for (int at = int(threadIdx.x); at < D * D; at += kBackThreads) {
    const int i = at / D, j = at % D;
    const float product = products[i * (D + 1) + j], mirrored = products[j * (D + 1) + i],
                z_product = vectors[i] * vectors[D + j] + vectors[2 * D + i] * vectors[3 * D + j],
                z_mirrored = vectors[j] * vectors[D + i] + vectors[2 * D + j] * vectors[3 * D + i],
                one = i == j ? 1.0f : 0.0f;
    grads.dp[square + at] = __float2bfloat16(-g * (product + mirrored));
    grads.dp_z[square + at] = __float2bfloat16(-g * (z_product + z_mirrored));
    sum += (one - __bfloat162float(p[square + at])) * product + (one - p_z[square + at]) * z_product;
  }
  sum = block_sum<kWarps>(sum);
  if (threadIdx.x == 0) grads.ddecay[gate] = sum;
}

// --- Tokens ------------------------------------------------------------------------------------------------
constexpr int kTokenRounds = 2;
template <int D>
constexpr size_t kTokenShared = 3 * D * padded(D) * sizeof(half_t) + 2 * D * sizeof(float);

template <int D>
__device__ void fill_slots_from(half_t* to, const half_t* from) {
  fill_slots<D>(to, [&](int i, int j) {
    const uint2 x = *reinterpret_cast<const uint2*>(from + i * D + j);
    const float2 a = unpack2(x.x), b = unpack2(x.y);
    return float4{a.x, a.y, b.x, b.y};
  });
}
// Sum of acc times the rows in `a`, per half.
template <int D>
__device__ void add_dots(const float (&acc)[D / 8][4], const Frag (&a)[D / 16], float factor, float (&dot)[2]) {
#pragma unroll
  for (int t = 0; t < D / 8; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 x = unpack2(a[t / 2].r[t % 2 * 2 + half]);
      dot[half] += factor * (acc[t][2 * half] * x.x + acc[t][2 * half + 1] * x.y);
    }
}

struct TokenGrads {
  half_t *dk, *dv;
  float *dots, *dbeta;
};

// Gradients of k, v and beta, given those of P, A, Pz and b of the tokens' frame.
template <int D>
__global__ void __launch_bounds__(kBackThreads, 1)
    token_backward_kernel(FusedSizes n, FusedRows k, FusedRows v, BetaLogits logits, const float* norm,
                          const float* r, const uint32_t* angles, float key_scale, FrameGrads frame,
                          TokenGrads grads) {
  extern __shared__ __align__(16) unsigned char shared[];
  half_t *dp = reinterpret_cast<half_t*>(shared), *da = dp + D * padded(D), *dp_z = da + D * padded(D);
  float *db = reinterpret_cast<float*>(dp_z + D * padded(D)), *weight = db + D;
  constexpr int kTokens = kBackTokens * kTokenRounds;
  const int tiles = (n.s + kTokens - 1) / kTokens, lane = int(threadIdx.x) % 32;
  const FusedCell cell(int(blockIdx.x) / tiles, n);
  const int64_t square = int64_t(cell.index) * D * D;
  fill_slots_from<D>(dp, frame.dp + square);
  fill_slots_from<D>(da, frame.da + square);
  fill_slots_from<D>(dp_z, frame.dp_z + square);
  for (int i = int(threadIdx.x); i < D; i += kBackThreads) {
    db[i] = frame.db[cell.index * D + i];
    weight[i] = norm[cell.h * D + i];
  }
  __syncthreads();
#pragma unroll 1
  for (int round = 0; round < kTokenRounds; ++round) {
    const int start = int(blockIdx.x) % tiles * kTokens + round * kBackTokens + int(threadIdx.x) / 32 * 16;
    if (start >= n.s) return;
    Frag plain[D / 16], turned[D / 16], values[D / 16];
    Share<D> raw[2], angle[2];
    float scale[2], beta[2], dbeta[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = start + lane / 4 + 8 * half;
      const bool valid = at < n.s;
      raw[half] = load_share<D>(k.at(cell, D, at), valid);
      angle[half] = load_share<D>(angles + int64_t(cell.place(n) + at) * (D / 2), valid);
      put_rows<D>(values, load_share<D>(v.at(cell, D, at), valid), half);
      scale[half] = valid ? r[n.tokens() + cell.token(n) + at] * key_scale : 0;
      beta[half] = valid ? logits.beta(cell, at) : 0;
      Share<D> row, turned_row;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const FeaturePair pair = feature_pair<D>(raw[half], angle[half], weight, t, scale[half]);
        const float2 f = pair.plain();
        dbeta[half] += f.x * db[owned_channel<D>(t)] + f.y * db[owned_channel<D>(t) + 1];
        row.w[t] = pack2(f.x, f.y);
        turned_row.w[t] = pair.turned(f);
      }
      put_rows<D>(plain, row, half);
      put_rows<D>(turned, turned_row, half);
    }
    // P and Pz count half in dbeta, since their symmetric gradients hold them twice.
    {
      float acc[D / 8][4] = {};
      rows_product<D, true>(acc, turned, da);
      add_dots<D>(acc, values, 1.0f, dbeta);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = start + lane / 4 + 8 * half;
        Share<D> dv;
#pragma unroll
        for (int t = 0; t < D / 8; ++t)
          dv.w[t] = pack2(beta[half] * acc[t][2 * half], beta[half] * acc[t][2 * half + 1]);
        if (at < n.s) store_share<D>(grads.dv + (int64_t(cell.token(n) + at) * n.h + cell.h) * D, dv);
      }
    }
    float acc[D / 8][4] = {}, acc_z[D / 8][4] = {};
    rows_product<D, true>(acc_z, plain, dp_z);
    add_dots<D>(acc_z, plain, 0.5f, dbeta);
    rows_product<D, true>(acc, turned, dp);
    add_dots<D>(acc, turned, 0.5f, dbeta);
    rows_product<D, false>(acc, values, da);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = start + lane / 4 + 8 * half;
      Share<D> dk;
      float dot = 0;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const FeaturePair pair = feature_pair<D>(raw[half], angle[half], weight, t, scale[half]);
        const int channel = owned_channel<D>(t);
        const float2 d = pair.back({acc[t][2 * half], acc[t][2 * half + 1]},
                                   {acc_z[t][2 * half] + db[channel], acc_z[t][2 * half + 1] + db[channel + 1]},
                                   beta[half] * key_scale);
        dot += pair.product(d);
        dk.w[t] = pack2(d.x, d.y);
      }
      dot = quad_sum(dot);
      const float strength = quad_sum(dbeta[half]);
      if (at >= n.s) continue;
      const int64_t row = int64_t(cell.token(n) + at) * n.h + cell.h;
      store_share<D>(grads.dk + row * D, dk);
      if (lane % 4 == 0) {
        grads.dots[row] = dot;
        grads.dbeta[row] = strength * beta[half] * (1 - beta[half]);
      }
    }
  }
}

// --- Norms -------------------------------------------------------------------------------------------------
constexpr int kNormThreads = 288, kNormTokens = 32;  // 2240 channels, 8 a thread

// dx = r w dy - x r^3 mean(w dy x) in place of dy; parts [chunk][2][C] = sums of dy x r over a chunk of tokens.
// blockIdx.x: chunk, y: channels, z: q or k.
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
  const Tensor x = empty_like(saved.m), y = empty_like(saved.z), e = empty_like(saved.m), e_z = empty_like(saved.z),
               l = empty_like(saved.m), l_z = empty_like(saved.z), dp = empty_like(saved.p),
               da = empty_like(saved.p), dp_z = empty_like(saved.p), db = empty_like(saved.z),
               dots({2, tokens * n.h}, DType::f32, Device::cuda);
  const half_t* p = bf16s(saved.p);
  const float *p_z = f32(saved.p_z), *decay = f32(in.decay), *r = f32(saved.r);
  dispatch_head(n.d, [&]<int D>() {
    allow_shared(read_backward_kernel<D>, kReadGradShared<D>);
    launch({unsigned(n.cells()), kBackThreads, kReadGradShared<D>}, read_backward_kernel<D>, n, FusedRows(in.q),
           FusedRows(in.gate), bf16s(dout), f32(in.q_norm), r, angles, f32(saved.m), f32(saved.r_m),
           f32(saved.z), f32(saved.r_z), float(eps),
           ReadGrads{bf16s(grads.q), bf16s(grads.gate), f32(dots), f32(x), f32(y)});

    const FusedChain back{ChainOrder::around, f32(x),   f32(y),   f32(dfinal.kv),      f32(dfinal.z),
                          f32(e),             f32(e_z), f32(grads.start.kv), f32(grads.start.z)},
        forth{ChainOrder::after, f32(x), f32(y), nullptr, nullptr, f32(l), f32(l_z), nullptr, nullptr};
    run_fused_chains(n, p, p_z, decay, back, &forth);

    const FrameGrads frame{bf16s(dp), bf16s(da), bf16s(dp_z), f32(db), f32(grads.decay)};
    allow_shared(frame_backward_kernel<D>, kFrameShared<D>);
    launch({unsigned(n.cells()), kBackThreads, kFrameShared<D>}, frame_backward_kernel<D>, n,
           Histories{f32(in.start.kv), f32(in.start.z), f32(saved.m), f32(saved.z), f32(saved.r_m),
                     f32(saved.r_z), f32(e), f32(e_z), f32(l), f32(l_z)},
           p, p_z, decay, frame);

    allow_shared(token_backward_kernel<D>, kTokenShared<D>);
    launch({unsigned(n.cells()) * blocks_for(n.s, kBackTokens * kTokenRounds), kBackThreads, kTokenShared<D>},
           token_backward_kernel<D>, n, FusedRows(in.k), FusedRows(in.v), BetaLogits(in.beta), f32(in.k_norm), r,
           angles, float(key_scale), frame,
           TokenGrads{bf16s(grads.k), bf16s(grads.v), f32(dots) + tokens * n.h, f32(grads.beta)});
  });
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
