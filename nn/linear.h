// y = x W^T + b, with the weight in any of its released layouts.
#pragma once

#include "nn/module.h"
#include "ops/matmul.h"

namespace rivulet {

// weight [out, in], or with trailing dims of 1 (a 1x1 convolution), or [out, in, 3]: a temporal kernel of
// which only the centre tap is applied (dit.md 3.1; taps 0 and 2 keep a zero gradient).
struct Linear {
  Tensor weight, bias;

  Linear() = default;
  // A layer of the given weight shape; bias [out] when asked for. Contents are unspecified.
  Linear(const Shape& weight_shape, bool with_bias, Device device)
      : weight(weight_shape, DType::f32, device),
        bias(with_bias ? Tensor({weight_shape[0]}, DType::f32, device) : Tensor()) {}

  template <class F>
  void visit(F&& f) {
    f("weight", weight);
    f("bias", bias);
  }

  Tensor matrix() const {
    const int64_t out = weight.dim(0), in = weight.dim(1);
    if (weight.numel() == 3 * out * in) return weight.select(2, 1);
    return weight.reshape({out, in});
  }
  Tensor operator()(const Tensor& x) const { return linear(x, matrix(), bias); }
};

// The learnt weight of an RMSNorm.
struct NormWeight {
  Tensor weight;
  template <class F>
  void visit(F&& f) {
    f("weight", weight);
  }
};

}  // namespace rivulet
