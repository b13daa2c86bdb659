// bf16 and f16 are storage formats: an op given them computes on f32 copies. Its result has the dtype of
// its first input.
#pragma once

#include "tensor/tensor.h"

namespace rivulet {

inline bool any_half(const Tensors& in) {
  for (const Tensor& t : in)
    if (t.defined() && is_half(t.dtype())) return true;
  return false;
}

// f on f32 copies of the half inputs (differentiable); the result goes back to the dtype of in[0].
//   if (any_half({x, w})) return through_f32({x, w}, [&](const Tensors& t) { return norm(t[0], t[1]); });
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
