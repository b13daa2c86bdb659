// The gate of a gated linear unit, fused:
//
//   y = a * silu(g),   silu(g) = g * s,   s = 1 / (1 + e^-g)
//   da = dy * silu(g),   dg = dy * a * s * (1 + g * (1 - s)).            Saves a and g.
//
// glu_silu takes a | g as the channels of one tensor, mul_silu as two.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// x [..., 2C] -> [..., C]
Tensor glu_silu(const Tensor& x);
// a and g of one shape, their rows read in place (slices of a fused product) -> the same shape, dense.
Tensor mul_silu(const Tensor& a, const Tensor& g);

// a, g, da and dg [rows, C] with dense rows at any distance; y and dy dense.
KERNELS(void mul_silu(const Tensor& a, const Tensor& g, Tensor& y);
        void mul_silu_backward(const Tensor& dy, const Tensor& a, const Tensor& g, const Tensor& da,
                               const Tensor& dg);)

const OpCase& glu_silu_case();
const OpCase& mul_silu_case();

}  // namespace rivulet
