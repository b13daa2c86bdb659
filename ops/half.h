// An op given a type that its kernels do not compute in works on f32 copies: f16 everywhere, bf16 on the CPU
// (CUDA kernels take bf16 and sum in f32). Its result has the dtype of its first input.
#pragma once

#include "tensor/tensor.h"

namespace rivulet {

// True when the kernels where x lives do not compute in its type: both halves on the CPU, f16 on the GPU.
inline bool needs_f32(const Tensor& x) {
  return x.dtype() == DType::f16 || (x.dtype() == DType::bf16 && x.device() != Device::cuda);
}
// For several inputs: also when a half meets another floating type.
inline bool needs_f32(const Tensors& in) {
  bool half = false, other = false;
  for (const Tensor& t : in) {
    if (!t.defined() || !is_floating(t.dtype())) continue;
    if (needs_f32(t)) return true;
    (is_half(t.dtype()) ? half : other) = true;
  }
  return half && other;
}

// True for the ops whose kernels take f32 and f64 alone, on every device.
inline bool any_half(const Tensors& in) {
  for (const Tensor& t : in)
    if (t.defined() && is_half(t.dtype())) return true;
  return false;
}

// f on f32 copies of the half inputs (differentiable); the result goes back to the dtype of in[0].
//   if (needs_f32({x, w})) return through_f32({x, w}, [&](const Tensors& t) { return norm(t[0], t[1]); });
template <class F>
Tensor through_f32(const Tensors& in, F&& f) {
  Tensors wide = in;
  for (Tensor& t : wide)
    if (t.defined() && is_half(t.dtype())) t = t.to(DType::f32);
  return f(wide).to(in[0].dtype());
}

// Throws unless all defined tensors are of one floating dtype on one device.
inline void check_same_type(const char* who, const Tensors& in) {
  const Tensor& x = in[0];
  check(x.defined(), who, ": the first input is undefined");
  check(is_floating(x.dtype()), who, ": needs a floating tensor, got ", x.dtype(), " of shape ", x.shape());
  for (const Tensor& t : in) {
    if (!t.defined()) continue;
    check(t.dtype() == x.dtype(), who, ": dtypes ", x.dtype(), " and ", t.dtype(), " of shapes ", x.shape(),
          " and ", t.shape());
    check(t.device() == x.device(), who, ": inputs on ", x.device(), " and ", t.device());
  }
}

}  // namespace rivulet
