// Updates of training state, in place and off the tape. Each runs over whole tensors in one pass.
#pragma once

#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

// One AdamW step's numbers (Loshchilov and Hutter 2019, as PyTorch orders the operations).
struct AdamwStep {
  double lr, beta1, beta2, eps, weight_decay;
  int64_t count;          // 1 for the first step
  double grad_scale = 1;  // the gradient is multiplied by it first (clipping)
};

// g = grad_scale * grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = w (1 - lr * decay);
// w = w - lr * (m / (1 - b1^count)) / (sqrt(v / (1 - b2^count)) + eps)
// w, m, v: dense f32 of one shape; grad: f32, bf16 or f16 of that shape.
void adamw_update(const Tensor& w, const Tensor& grad, const Tensor& m, const Tensor& v,
                  const AdamwStep& step);

// average = decay * average + (1 - decay) * x. average: dense f32; x: any floating type.
void ema_update(const Tensor& average, const Tensor& x, double decay);

// Sum of squares, gathered in f64 in an order that depends on the shape alone. x: any floating type.
double sum_of_squares(const Tensor& x);

// clang-format off
KERNELS(
  void adamw_update(const Tensor& w, const Tensor& grad, const Tensor& m, const Tensor& v, const AdamwStep& step);
  void ema_update(const Tensor& average, const Tensor& x, double decay);
  double sum_of_squares(const Tensor& x);)
// clang-format on

}  // namespace rivulet
