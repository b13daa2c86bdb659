// Depthwise 3x3 convolution (cross-correlation), channels last, zero padding of 1.
//
//   y[p, c] = bias[c] + sum over the 9 taps u of w[c, u] x[p + u - 1, c]
//   dx[p, c] = sum over u of w[c, u] dy[p - u + 1, c],   dw[c, u] = sum over p of dy[p, c] x[p + u - 1, c]
//
// Saves x and w. (Fused with the gate that follows it, and with silu before it: ops/depthwise_glu.)
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// x [B, H, W, C], w [C, 1, 3, 3], bias [C] -> [B, H, W, C]
Tensor depthwise_conv3x3(const Tensor& x, const Tensor& w, const Tensor& bias);

// taps [9, C]. transposed: each tap reads on the other side, as the gradient of x does. bias may be
// undefined.
KERNELS(void depthwise_conv3x3(const Tensor& x, const Tensor& taps, const Tensor& bias, bool transposed,
                               Tensor& y);
        void depthwise_conv3x3_tap_grad(const Tensor& dy, const Tensor& x, Tensor& dtaps);)

const OpCase& depthwise_conv3x3_case();

}  // namespace rivulet
