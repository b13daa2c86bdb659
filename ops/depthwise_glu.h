// The middle of a gated convolutional feed-forward layer, one sweep over its widest tensor (channels last):
//
//   m = bias + depthwise 3x3 of f(x) by w, zero padding of 1;   a | b = m;   y = a silu(b)
//   f is silu (silu_depthwise_glu: x is what the layer before gives) or nothing (depthwise_glu)
//
//   da = dy silu(b),  db = dy a silu'(b),  dx = f'(x) (transposed convolution of dm),
//   dw[c, u] = sum over p of dm[p, c] f(x)[p + u - 1, c],  dbias = sum of dm.             Saves x, w and bias.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// x [B, H, W, 2C], w [2C, 1, 3, 3], bias [2C] -> [B, H, W, C]
Tensor depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias);
Tensor silu_depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias);

// Dense: x, dx [B, H, W, 2C], w, dw [2C, 9], bias, dbias [2C], y and dy [B, H, W, C].
KERNELS(void depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias, bool silu_first, Tensor& y);
        void depthwise_glu_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& bias,
                                    bool silu_first, Tensor& dx, Tensor& dw, Tensor& dbias);)

const OpCase& depthwise_glu_case();
const OpCase& silu_depthwise_glu_case();

}  // namespace rivulet
