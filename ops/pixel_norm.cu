#include "ops/pixel_norm.h"
#include "tensor/cuda.cuh"

// A warp per pixel: its lanes walk the channels together, once for the sum and once for the result.
namespace rivulet::cuda {
namespace {

constexpr int kWarps = 8;

template <class W>
__device__ W sum_of_warp(W x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

template <class T, class W>
__device__ W inverse_rms(const T* x, int c, W eps) {
  W squares = 0;
  for (int j = int(threadIdx.x); j < c; j += 32) squares += W(x[j]) * W(x[j]);
  return W(1) / sqrt(sum_of_warp(squares) / W(c) + eps);
}

template <class T>
__global__ void pixel_norm_silu_kernel(const T* x, int64_t rows, int c, Wide<T> eps, T* y) {
  using W = Wide<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= rows) return;
  x += row * c;
  y += row * c;
  const W r = inverse_rms(x, c, eps);
  for (int j = int(threadIdx.x); j < c; j += 32) {
    const W n = W(x[j]) * r;
    y[j] = convert<T>(n / (W(1) + exp(-n)));
  }
}

template <class T>
__global__ void pixel_norm_silu_backward_kernel(const T* g, const T* x, int64_t rows, int c, Wide<T> eps,
                                                T* dx) {
  using W = Wide<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= rows) return;
  g += row * c;
  x += row * c;
  dx += row * c;
  const W r = inverse_rms(x, c, eps);
  const auto slope = [&](int j) {
    const W n = W(x[j]) * r, s = W(1) / (W(1) + exp(-n));
    return W(g[j]) * s * (W(1) + n * (W(1) - s));
  };
  W dot = 0;
  for (int j = int(threadIdx.x); j < c; j += 32) dot += slope(j) * W(x[j]);
  const W pull = r * r * r * sum_of_warp(dot) / W(c);
  for (int j = int(threadIdx.x); j < c; j += 32) dx[j] = convert<T>(r * slope(j) - W(x[j]) * pull);
}

}  // namespace

void pixel_norm_silu(const Tensor& x, double eps, Tensor& y) {
  dispatch_float(x.dtype(), "pixel_norm_silu", [&]<class T>() {
    const int64_t c = x.dim(-1), rows = x.numel() / c;
    launch({blocks_for(rows, kWarps), dim3(32, kWarps)}, pixel_norm_silu_kernel<T>, pointer<const T>(x), rows,
           c, eps, pointer<T>(y));
  });
}

void pixel_norm_silu_backward(const Tensor& g, const Tensor& x, double eps, Tensor& dx) {
  dispatch_float(x.dtype(), "pixel_norm_silu", [&]<class T>() {
    const int64_t c = x.dim(-1), rows = x.numel() / c;
    launch({blocks_for(rows, kWarps), dim3(32, kWarps)}, pixel_norm_silu_backward_kernel<T>,
           pointer<const T>(g), pointer<const T>(x), rows, c, eps, pointer<T>(dx));
  });
}

}  // namespace rivulet::cuda
