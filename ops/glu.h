// The gate of a gated linear unit, fused: the channels of x are a | g,
//
//   y = a * silu(g),   silu(g) = g * s,   s = 1 / (1 + e^-g)
//   da = dy * silu(g),   dg = dy * a * s * (1 + g * (1 - s)).            Saves x.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// x [..., 2C] -> [..., C]
Tensor glu_silu(const Tensor& x);

KERNELS(void glu_silu(const Tensor& x, Tensor& y);
        void glu_silu_backward(const Tensor& dy, const Tensor& x, Tensor& dx);)

const OpCase& glu_silu_case();

}  // namespace rivulet
