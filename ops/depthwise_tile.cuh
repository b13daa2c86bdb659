// The depthwise convolution with its gate (ops/depthwise_glu.h) in bf16 by tiles in shared memory.
#pragma once

#include "ops/depthwise_glu.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {

// Each of these writes its results and returns true, or returns false where such tiles do not fit.
bool depthwise_glu_tiled(const Tensor& x, const Tensor& w, const Tensor& bias, bool silu_first, Tensor& y);
// dm [.., 2C]: the gradient of what goes into the gate.
bool depthwise_gate_tiled(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& bias,
                          bool silu_first, const Tensor& dm);
// From dm: dx, dw and dbias.
bool depthwise_backward_tiled(const Tensor& dm, const Tensor& x, const Tensor& w, bool silu_first,
                              const Tensor& dx, const Tensor& dw, const Tensor& dbias);

constexpr int64_t kMostTileShared = 200 << 10;

// Whether x has this kind of tiles: blocks of `channels` channels, `shared` bytes each.
inline bool depthwise_tiles(const Tensor& x, int64_t channels, int64_t shared) {
  return x.dtype() == DType::bf16 && x.dim(3) % channels == 0 && shared <= kMostTileShared &&
         x.dim(0) <= 65535 && is_aligned(x.raw(), 16);
}

// sigmoid(x) by the hardware's tanh, off by at most 2^-12: less than rounding to bf16.
__device__ inline float fast_sigmoid(float x) {
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(0.5f * x));
  return 0.5f + 0.5f * t;
}
__device__ inline float fast_silu(float x) { return x * fast_sigmoid(x); }
// x sigmoid(x) and its slope.
struct Silu {
  float value, slope;
  __device__ explicit Silu(float x) {
    const float s = fast_sigmoid(x);
    value = x * s;
    slope = s * (1 + x * (1 - s));
  }
};

}  // namespace rivulet::cuda
