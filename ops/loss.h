// Scalar losses: results of shape [] in f32 (f64 for f64 inputs), summed in f64. With d = a - b and n
// elements:
//
//   mse_loss      mean d^2                        da = 2 d / n
//   masked_mse    sum m d^2 / sum m               da = 2 m d / sum m          (m broadcasts to a; 0 if sum m
//   = 0) l1_loss       mean |d|                        da = sign(d) / n charbonnier   mean sqrt(d^2 + eps^2)
//   da = d / sqrt(d^2 + eps^2) / n
//
// db = -da. All save a and b; there is no gradient for the mask.
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

Tensor mse_loss(const Tensor& a, const Tensor& b);
// mask: u8 (0 or 1) or floating weights >= 0.
Tensor masked_mse(const Tensor& a, const Tensor& b, const Tensor& mask);
Tensor l1_loss(const Tensor& a, const Tensor& b);
Tensor charbonnier(const Tensor& a, const Tensor& b, double eps = 1e-3);

enum class LossOp : uint8_t { square, absolute, charbonnier };

// Dense a, b and mask (undefined: ones) of one dtype and shape. y = sum of mask * loss(a - b) / divisor;
// da = g * scale * mask * loss'(a - b), g one element.
KERNELS(void loss(LossOp op, const Tensor& a, const Tensor& b, const Tensor& mask, double eps, double divisor,
                  Tensor& y);
        void loss_backward(LossOp op, const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& mask,
                           double eps, double scale, Tensor& da);)

const OpCase& mse_loss_case();
const OpCase& masked_mse_case();
const OpCase& l1_loss_case();
const OpCase& charbonnier_case();

}  // namespace rivulet
