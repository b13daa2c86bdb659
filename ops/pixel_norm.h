// The activation between the convolutions of a video autoencoder: every pixel is divided by the root mean
// square of its channels, then SiLU.
//
//   n = x r,  r = 1 / sqrt(mean(x^2) + eps) over the channels,   y = n s,  s = 1 / (1 + e^-n)
//   u = dy s (1 + n (1 - s)),   dx = r u - x r^3 mean(u x)                                  Saves x.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// x [..., C]
Tensor pixel_norm_silu(const Tensor& x, double eps = 1e-8);

// Dense tensors.
KERNELS(void pixel_norm_silu(const Tensor& x, double eps, Tensor& y);
        void pixel_norm_silu_backward(const Tensor& g, const Tensor& x, double eps, Tensor& dx);)

const OpCase& pixel_norm_silu_case();

}  // namespace rivulet
