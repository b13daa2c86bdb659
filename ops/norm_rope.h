// RMS norm over all channels of a token, then the rotary embedding of every head, in one pass:
//
//   y = rope(h),  h = x r w,  r = 1 / sqrt(mean(x^2) + eps)      (ops/norm.h, ops/rope.h)
//
// The gradient is that of the composition. Saves x, w and r.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// x [B, N, C], its rows read in place (a slice of a fused q|k|v product), w [C]; cos and sin [N, D / 2] of
// heads of D channels, H = C / D -> [B, N, H, D].
// `into` [B, N, H, D], with dense tokens at any distance: where the result goes (a cache of keys) instead of
// into a new tensor; it is returned, and nothing may need a gradient.
Tensor rms_norm_rope(const Tensor& x, const Tensor& w, const Tensor& cos, const Tensor& sin, double eps = 1e-6,
                     const Tensor& into = {});

// x, y, g: [rows, C], dense rows at any distance; row i is token i % N. dx dense. cos and sin in f32 (f64 for
// f64 x), r [rows]. An undefined dw is not computed.
KERNELS(void rms_norm_rope(const Tensor& x, const Tensor& w, const Tensor& cos, const Tensor& sin, double eps,
                           const Tensor& y, const Tensor& r);
        void rms_norm_rope_backward(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& cos,
                                    const Tensor& sin, const Tensor& r, Tensor& dx, Tensor& dw);)

const OpCase& rms_norm_rope_case();

}  // namespace rivulet
