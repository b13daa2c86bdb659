#include "ops/gdn_fused.cuh"

// The later half of the backward: from the gradients of the states to those of each frame's P, A, Pz, b and
// decay, and from there to those of k, v and beta.
namespace rivulet::cuda {
namespace {

// Histories of the states and of the gradients that reach them; starts may be null.
struct Histories {
  const float *start, *start_z, *m, *z, *r_m, *r_z, *e, *e_z, *l, *l_z;
};
struct FrameGrads {
  half_t *dp, *da, *dp_z;  // dp + dp', dp_z + dp_z' and da [value, key]
  float *db, *ddecay;
};

// --- Each frame's P, A, Pz, b and decay --------------------------------------------------------------------
template <int D>
constexpr size_t kFrameShared = std::max<size_t>(2 * D * padded(D) * sizeof(half_t),
                                                 D*(D + 1) * sizeof(float)) +
                                4 * D * sizeof(float);

// G = E_f M_{f-1}' + L_{f-1} R_f':   dP = -g G,   dg = sum over i, j of (I - P) G,   dA = E_f + L_{f-1}.
template <int D>
__global__ void __launch_bounds__(kBackThreads)
    frame_backward_kernel(FusedSizes n, Histories s, const half_t* p, const float* p_z, const float* decay,
                          FrameGrads grads) {
  extern __shared__ __align__(16) unsigned char shared[];
  half_t* operands = reinterpret_cast<half_t*>(shared);  // E and M, then L and R, [value][key]
  float *products = reinterpret_cast<float*>(shared),    // later: G
      *vectors = reinterpret_cast<float*>(shared + kFrameShared<D> - 4 * D * sizeof(float));
  const FusedCell cell(int(blockIdx.x), n);
  const int64_t square = int64_t(cell.index) * D * D, row = int64_t(cell.index) * D;
  const bool first = cell.f == 0;
  const float* before =
      first ? (s.start ? s.start + int64_t(cell.b * n.h + cell.h) * D * D : nullptr) : s.m + square - D * D;
  const float* before_z =
      first ? (s.start_z ? s.start_z + int64_t(cell.b * n.h + cell.h) * D : nullptr) : s.z + row - D;
  const auto value = [](const float* from, int i) {
    return from == nullptr ? float4{} : *reinterpret_cast<const float4*>(from + i);
  };
  const auto store = [&](half_t* to, int i, float4 x) {
    *reinterpret_cast<uint2*>(to + i) = {pack2(x.x, x.y), pack2(x.z, x.w)};
  };
  // Adds X' Y to G.
  float acc[D / 16][8] = {};
  const auto add_product = [&](const float* x, const float* y) {
    for (int i = 4 * int(threadIdx.x); i < D * D; i += 4 * kBackThreads) {
      half_t* at = operands + i / D * padded(D) + i % D;
      store(at, 0, value(x, i));
      store(at + D * padded(D), 0, value(y, i));
    }
    __syncthreads();
    add_strip<D>(acc, operands, operands + D * padded(D), D);
    __syncthreads();
  };
  add_product(s.e + square, before);
  const float* later = first ? nullptr : s.l + square - D * D;
  if (!first) add_product(later, s.r_m + square);
  for (int i = 4 * int(threadIdx.x); i < D * D; i += 4 * kBackThreads) {
    const float4 e = value(s.e + square, i), l = value(later, i);
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
  sum = block_sum<kBackWarps>(sum);
  if (threadIdx.x == 0) grads.ddecay[gate] = sum;
}

// --- Tokens ------------------------------------------------------------------------------------------------
constexpr int kTokenRounds = 2;
template <int D>
constexpr size_t kTokenShared = 3 * D* padded(D) * sizeof(half_t) + 2 * D * sizeof(float);

template <int D>
__device__ void fill_slots_from(half_t* to, const half_t* from) {
  fill_slots<D, kBackThreads>(to, [&](int i, int j) {
    const uint2 x = *reinterpret_cast<const uint2*>(from + i * D + j);
    const float2 a = unpack2(x.x), b = unpack2(x.y);
    return float4{a.x, a.y, b.x, b.y};
  });
}
// Sum of acc times the rows in `a`, per half.
template <int D>
__device__ void add_dots(const float (&acc)[D / 8][4], const Frag (&a)[D / 16], float factor,
                         float (&dot)[2]) {
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
    token_backward_kernel(FusedSizes n, FusedRows k, FusedRows v, const float* betas, const float* norm,
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
    float scale[2], beta[2], dbeta[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = start + lane / 4 + 8 * half;
      const bool valid = at < n.s;
      const Share<D> raw = load_share<D>(k.at(cell, D, at), valid),
                     angle = load_share<D>(angles + int64_t(cell.place(n) + at) * (D / 2), valid);
      put_rows<D>(values, load_share<D>(v.at(cell, D, at), valid), half);
      scale[half] = valid ? r[n.tokens() + cell.token(n) + at] * key_scale : 0;
      beta[half] = valid ? betas[int64_t(cell.token(n) + at) * n.h + cell.h] : 0;
      Share<D> row, turned_row;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const FeaturePair pair = feature_pair<D>(raw, angle, weight, t, scale[half]);
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
      const Share<D> raw = load_share<D>(k.at(cell, D, at),
                                         at < n.s),  // again: they would not fit in registers
          angle = load_share<D>(angles + int64_t(cell.place(n) + at) * (D / 2), at < n.s);
      Share<D> dk;
      float dot = 0;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const FeaturePair pair = feature_pair<D>(raw, angle, weight, t, scale[half]);
        const int channel = owned_channel<D>(t);
        const float2 d =
            pair.back({acc[t][2 * half], acc[t][2 * half + 1]},
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

}  // namespace

void backward_of_frames(const FusedSizes& n, const GdnFusedInputs& in, const GdnFusedSaved& saved,
                        float key_scale, const StateGrads& states, float* dots, GdnFusedInputs& grads) {
  const auto f32 = [](const Tensor& t) { return pointer<float>(t); };
  const auto bf16s = [](const Tensor& t) { return pointer<half_t>(t); };
  const Tensor dp = empty_like(saved.p), da = empty_like(saved.p), dp_z = empty_like(saved.p),
               db = empty_like(saved.z);
  const FrameGrads frame{bf16s(dp), bf16s(da), bf16s(dp_z), f32(db), f32(grads.decay)};
  dispatch_head(n.d, [&]<int D>() {
    allow_shared(frame_backward_kernel<D>, kFrameShared<D>);
    launch({unsigned(n.cells()), kBackThreads, kFrameShared<D>}, frame_backward_kernel<D>, n,
           Histories{f32(in.start.kv), f32(in.start.z), f32(saved.m), f32(saved.z), f32(saved.r_m),
                     f32(saved.r_z), states.e, states.e_z, states.l, states.l_z},
           bf16s(saved.p), f32(saved.p_z), f32(in.decay), frame);
    allow_shared(token_backward_kernel<D>, kTokenShared<D>);
    launch({unsigned(n.cells()) * blocks_for(n.s, kBackTokens * kTokenRounds), kBackThreads, kTokenShared<D>},
           token_backward_kernel<D>, n, FusedRows(in.k), FusedRows(in.v), f32(saved.beta), f32(in.k_norm),
           f32(saved.r), pointer<uint32_t>(saved.angles), key_scale, frame,
           TokenGrads{bf16s(grads.k), bf16s(grads.v), dots, f32(grads.beta)});
  });
}

}  // namespace rivulet::cuda
