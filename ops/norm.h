// Normalisation of rows (the last dim, C channels).
//
//   rms_norm     y = x r w',  w' = w + offset,  r = 1 / sqrt(mean(x^2) + eps)           saves x, w, r per row
//                dx = r (g w') - x r^3 mean(g w' x),   dw = sum over rows of g x r
//   layer_norm   y = h w + b,  h = (x - mean) r,  r = 1 / sqrt(var(x) + eps)            saves x, w, mean, r
//                dx = r (g w - mean(g w) - h mean(g w h)),   dw = sum of g h,   db = sum of g
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

// x [..., C], w [C] or undefined (w' is then 1). Some models store w as its distance from 1: offset 1.
Tensor rms_norm(const Tensor& x, const Tensor& w = {}, double eps = 1e-6, double offset = 0);
// x [..., C], w and b [C], each may be undefined.
Tensor layer_norm(const Tensor& x, const Tensor& w = {}, const Tensor& b = {}, double eps = 1e-6);

// Dense tensors; r and mean are [rows]. An undefined w, b, dw or db takes no part.
KERNELS(void rms_norm(const Tensor& x, const Tensor& w, double eps, double offset, Tensor& y, Tensor& r);
        void rms_norm_backward(const Tensor& g, const Tensor& x, const Tensor& w, double offset,
                               const Tensor& r, Tensor& dx, Tensor& dw);
        void layer_norm(const Tensor& x, const Tensor& w, const Tensor& b, double eps, Tensor& y,
                        Tensor& mean, Tensor& r);
        void layer_norm_backward(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& mean,
                                 const Tensor& r, Tensor& dx, Tensor& dw, Tensor& db);)

const OpCase& rms_norm_case();
const OpCase& rms_norm_offset_case();  // offset 1
const OpCase& layer_norm_case();

}  // namespace rivulet
