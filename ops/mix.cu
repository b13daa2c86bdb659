#include "ops/mix.h"

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

struct Sizes {
  int64_t F, K, C, N;
};

// One thread per (place, result): blockIdx.y is b * F + f, blockIdx.z the result c.
template <class T>
__global__ void mix_kernel(const T* a, const T* w, Sizes s, T* y) {
  const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, bf = blockIdx.y, c = blockIdx.z;
  if (n >= s.N) return;
  const T* in = a + bf * s.K * s.N + n;
  const T* weight = w + (bf / s.F * s.K * s.C + c) * s.N + n;
  Wide<T> sum = 0;
  for (int64_t k = 0; k < s.K; ++k) sum += Wide<T>(in[k * s.N]) * Wide<T>(weight[k * s.C * s.N]);
  y[(bf * s.C + c) * s.N + n] = convert<T>(sum);
}

// blockIdx.y is b * K + k.
template <class T>
__global__ void mix_weight_backward_kernel(const T* dy, const T* a, Sizes s, T* dw) {
  const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, b = blockIdx.y / s.K,
                k = blockIdx.y % s.K, c = blockIdx.z;
  if (n >= s.N) return;
  const T* in = a + (b * s.F * s.K + k) * s.N + n;
  const T* up = dy + (b * s.F * s.C + c) * s.N + n;
  Wide<T> sum = 0;
  for (int64_t f = 0; f < s.F; ++f) sum += Wide<T>(in[f * s.K * s.N]) * Wide<T>(up[f * s.C * s.N]);
  dw[(blockIdx.y * s.C + c) * s.N + n] = convert<T>(sum);
}

// blockIdx.y is b * F + f, blockIdx.z the operand k.
template <class T>
__global__ void mix_operand_backward_kernel(const T* dy, const T* w, Sizes s, T* da) {
  const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, bf = blockIdx.y, k = blockIdx.z;
  if (n >= s.N) return;
  const T* up = dy + bf * s.C * s.N + n;
  const T* weight = w + (bf / s.F * s.K + k) * s.C * s.N + n;
  Wide<T> sum = 0;
  for (int64_t c = 0; c < s.C; ++c) sum += Wide<T>(up[c * s.N]) * Wide<T>(weight[c * s.N]);
  da[(bf * s.K + k) * s.N + n] = convert<T>(sum);
}

dim3 grid(int64_t n, int64_t y, int64_t z) {
  check(y <= 65535 && z <= 65535, "mix: ", y, " x ", z, " rows are too many for one launch");
  return {blocks_for(n, kThreads), unsigned(y), unsigned(z)};
}

}  // namespace

void mix(const Tensor& a, const Tensor& w, Tensor& y) {
  const Sizes s{a.dim(1), a.dim(2), w.dim(2), a.dim(3)};
  dispatch_float(y.dtype(), "mix", [&]<class T>() {
    launch({grid(s.N, a.dim(0) * s.F, s.C), kThreads}, mix_kernel<T>, pointer<T>(a), pointer<T>(w), s,
           pointer<T>(y));
  });
}

void mix_backward(const Tensor& dy, const Tensor& a, const Tensor& w, Tensor& da, Tensor& dw) {
  const Sizes s{a.dim(1), a.dim(2), w.dim(2), a.dim(3)};
  dispatch_float(dy.dtype(), "mix", [&]<class T>() {
    launch({grid(s.N, a.dim(0) * s.K, s.C), kThreads}, mix_weight_backward_kernel<T>, pointer<T>(dy),
           pointer<T>(a), s, pointer<T>(dw));
    if (da.defined())
      launch({grid(s.N, a.dim(0) * s.F, s.K), kThreads}, mix_operand_backward_kernel<T>, pointer<T>(dy),
             pointer<T>(w), s, pointer<T>(da));
  });
}

}  // namespace rivulet::cuda
