// Functions of one variable that several kernels fuse. The f32 ones take the hardware's exp2 and reciprocal,
// each within 2 ulp or so.
#pragma once

namespace rivulet::cuda {

__device__ inline double sigmoid_of(double x) { return 1 / (1 + ::exp(-x)); }
__device__ inline float sigmoid_of(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }
template <class W>
__device__ W silu_of(W x) {
  return x * sigmoid_of(x);
}
template <class W>
__device__ W silu_slope_of(W x) {
  const W s = sigmoid_of(x);
  return s * (W(1) + x * (W(1) - s));
}

}  // namespace rivulet::cuda
