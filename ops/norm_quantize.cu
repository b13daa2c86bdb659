#include "ops/norm_quantize.h"

#include <cuda_fp8.h>

#include "ops/quantize_group.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

using Bf16 = __nv_bfloat16;
constexpr int P = kPack<Bf16>, kMost = 9;  // packs of a row that one lane holds
constexpr int kWarpsOfBlock = 4;           // 2640 rows of 2240 then are one wave of blocks on an H100

// The hardware's conversion, whose bits are e4m3_of's, of a pack.
__device__ uint2 e4m3_pack(const Pack<Bf16, P>& x, float r) {
  uint32_t pair[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    pair[i] = __nv_cvt_float2_to_fp8x2(make_float2(float(x.v[2 * i]) * r, float(x.v[2 * i + 1]) * r),
                                       __NV_SATFINITE, __NV_E4M3);
  return {pair[0] | pair[1] << 16, pair[2] | pair[3] << 16};
}

struct LargerFloat {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// What a lane holds of a row of c values: packs `step` values apart, the first at `first`.
struct Place {
  int64_t row;
  int first, step, c;
  __device__ bool has(int i) const { return first + i * step < c; }
  __device__ int64_t at(int i) const { return row * c + first + i * step; }
};

// Codes and scale of the row whose packs these are. kWarps warps share a row; amax of a lane goes in.
template <int kWarps>
__device__ void store_codes(const Pack<Bf16, P> (&x)[kMost], const Place& p, uint8_t* codes, float* scales,
                            float* shared) {
  float m = 0;
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (p.has(i)) {
#pragma unroll
      for (int k = 0; k < P; ++k) m = finite_max(m, float(x[i].v[k]));
    }
  m = warp_reduce(m, LargerFloat{});
  if constexpr (kWarps > 1) {
    if (threadIdx.x == 0) shared[threadIdx.y] = m;
    __syncthreads();
    const int begin = int(threadIdx.y) / kWarps * kWarps;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, shared[begin + w]);
  }
  const float s = scale_of(m, kE4m3Max), r = 1 / s;
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (p.has(i)) *reinterpret_cast<uint2*>(codes + p.at(i)) = e4m3_pack(x[i], r);
  if (p.first == 0) scales[p.row] = s;
}

template <int kWarps>
__global__ void __launch_bounds__(32 * kWarpsOfBlock)
    rows_kernel(const Bf16* x, int64_t rows, int c, uint8_t* codes, float* scales) {
  __shared__ float shared[kWarpsOfBlock];
  const int64_t row = int64_t(blockIdx.x) * (kWarpsOfBlock / kWarps) + threadIdx.y / kWarps;
  const int lane = int(threadIdx.y) % kWarps * 32 + int(threadIdx.x);
  // A row beyond the end still takes part in the block's barrier: it holds nothing.
  const Place p{row, row < rows ? lane * P : c + 1, 32 * kWarps * P, c};
  Pack<Bf16, P> packs[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (p.has(i)) packs[i] = load_pack(x + p.at(i));
  store_codes<kWarps>(packs, p, codes, scales, shared);
}

// Eight values a thread, with one scale for all.
__global__ void scaled_kernel(const Bf16* x, int64_t packs, const float* scale, uint8_t* codes) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  *reinterpret_cast<uint2*>(codes + i * P) = e4m3_pack(load_pack(x + i * P), 1 / *scale);
}

struct NormArguments {
  int64_t rows;
  int c;
  const Bf16 *h, *gate, *branch, *shift, *scale;
  float eps;
  Bf16 *sum, *u;
  uint8_t* codes;
  float* scales;
  bool given;
};

__device__ void widen(const Pack<Bf16, P>& x, float (&out)[P]) {
#pragma unroll
  for (int k = 0; k < P; ++k) out[k] = float(x.v[k]);
}
__device__ Pack<Bf16, P> narrow(const float (&x)[P]) {
  Pack<Bf16, P> out;
#pragma unroll
  for (int k = 0; k < P; ++k) out.v[k] = __float2bfloat16(x[k]);
  return out;
}

// A warp a row; the same arithmetic as the norm pass (ops/norm_pass.cu).
__global__ void __launch_bounds__(32 * kWarpsOfBlock, 5) norm_kernel(NormArguments a) {
  const int64_t row = int64_t(blockIdx.x) * kWarpsOfBlock + threadIdx.y;
  if (row >= a.rows) return;
  const Place p{row, int(threadIdx.x) * P, 32 * P, a.c};
  const auto column = [&](int i) { return p.first + i * p.step; };
  Pack<Bf16, P> x[kMost];
  float v[P];
#pragma unroll
  for (int i = 0; i < kMost; ++i) x[i] = p.has(i) ? load_pack(a.h + p.at(i)) : Pack<Bf16, P>{};
  if (a.branch) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (!p.has(i)) continue;
      float add[P], z[P];
      widen(x[i], v);
      widen(load_pack(a.branch + p.at(i)), add);
      widen(load_pack(a.gate + column(i)), z);
#pragma unroll
      for (int k = 0; k < P; ++k) v[k] += z[k] * add[k];
      x[i] = narrow(v);
      store_pack(a.sum + p.at(i), x[i]);
    }
  }
  if (a.shift) {
    const float per_c = 1.f / float(a.c);
    float total = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      widen(x[i], v);
#pragma unroll
      for (int k = 0; k < P; ++k) total += v[k];
    }
    const float mu = warp_reduce(total, Plus{}) * per_c;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (!p.has(i)) continue;
      widen(x[i], v);
#pragma unroll
      for (int k = 0; k < P; ++k) squares += (v[k] - mu) * (v[k] - mu);
    }
    const float rstd = 1.f / sqrtf(warp_reduce(squares, Plus{}) * per_c + a.eps);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (!p.has(i)) continue;
      float w[P], b[P];
      widen(x[i], v);
      widen(load_pack(a.scale + column(i)), w);
      widen(load_pack(a.shift + column(i)), b);
#pragma unroll
      for (int k = 0; k < P; ++k) {
        v[k] = (v[k] - mu) * rstd;
        v[k] *= w[k] + 1.f;
        v[k] += b[k];
      }
      x[i] = narrow(v);
      if (a.u) store_pack(a.u + p.at(i), x[i]);
    }
  }
  if (!a.given) return store_codes<1>(x, p, a.codes, a.scales, nullptr);
  const float r = 1 / *a.scales;
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (p.has(i)) *reinterpret_cast<uint2*>(a.codes + p.at(i)) = e4m3_pack(x[i], r);
}

bool in_packs(int64_t c, const Tensors& all) {
  for (const Tensor& t : all)
    if (t && (!is_aligned(t.raw(), 16) || !t.is_contiguous())) return false;
  return c % P == 0;
}

}  // namespace

bool quantize_rows(const Tensor& x, const Tensor& codes, const Tensor& scales) {
  const int64_t rows = x.dim(0), c = x.dim(1);
  if (x.dtype() != DType::bf16 || c > 4 * 32 * P * kMost || !in_packs(c, {x, codes}) || rows == 0)
    return false;
  const bool short_rows = c <= 32 * P * kMost;
  const int64_t rows_of_block = short_rows ? kWarpsOfBlock : kWarpsOfBlock / 4;
  const Launch l{{blocks_for(rows, rows_of_block)}, {32, kWarpsOfBlock}};
  launch(l, short_rows ? rows_kernel<1> : rows_kernel<4>, pointer<Bf16>(x), rows, int(c),
         pointer<uint8_t>(codes), pointer<float>(scales));
  return true;
}

bool quantize_scaled(const Tensor& x, const Tensor& codes, const Tensor& scale) {
  if (x.dtype() != DType::bf16 || x.numel() == 0 || !in_packs(x.numel(), {x, codes})) return false;
  const int64_t packs = x.numel() / P;
  launch({blocks_for(packs, kThreads), kThreads}, scaled_kernel, pointer<Bf16>(x), packs,
         pointer<float>(scale), pointer<uint8_t>(codes));
  return true;
}

bool norm_quantize(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                   const Tensor& scale, double eps, const Tensor& sum, const Tensor& u, const Tensor& codes,
                   const Tensor& scales, bool given) {
  const int64_t c = h.dim(-1), rows = h.numel() / c;
  if (rows == 0 || c > 32 * P * kMost || !in_packs(c, {h, gate, branch, shift, scale, sum, u, codes}))
    return false;
  launch({{blocks_for(rows, kWarpsOfBlock)}, {32, kWarpsOfBlock}}, norm_kernel,
         NormArguments{rows, int(c), pointer<Bf16>(h), pointer<Bf16>(gate), pointer<Bf16>(branch),
                       pointer<Bf16>(shift), pointer<Bf16>(scale), float(eps), pointer<Bf16>(sum),
                       pointer<Bf16>(u), pointer<uint8_t>(codes), pointer<float>(scales), given});
  return true;
}

}  // namespace rivulet::cuda
