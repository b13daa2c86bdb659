// Conditioning by per-sample (or per-frame) vectors, as the adaLN of DiT (Peebles & Xie 2022, section 3.2):
//
//   modulate             y = x (1 + scale) + shift      dx = g (1 + scale), dscale = sum g x,  dshift = sum g
//   layer_norm_modulate  the same of layer_norm(x) without weights, in one pass    saves x, mean and r per
//   row gate_residual        y = h + gate * branch          dh = g, dbranch = g gate,   dgate = sum g branch
//
// The sums run over the rows that share a vector. x, h and branch are [..., C]. shift, scale and gate have
// as many dims, or fewer, and broadcast to it: [B, 1, C] for one vector per sample of [B, N, C], or
// [B, T, 1, C] for one per frame of [B, T, S, C].
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

Tensor modulate(const Tensor& x, const Tensor& shift, const Tensor& scale);
Tensor layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps = 1e-6);
Tensor gate_residual(const Tensor& h, const Tensor& gate, const Tensor& branch);

// Dense: x, y, g and dx [groups, rows, C], vectors [groups, C], mean and r [groups * rows].
// An undefined dshift, dscale or dgate is not computed.
KERNELS(void modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y);
        void modulate_backward(const Tensor& g, const Tensor& x, const Tensor& scale, Tensor& dx,
                               Tensor& dshift, Tensor& dscale);
        void layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps,
                                 Tensor& y, Tensor& mean, Tensor& r);
        void layer_norm_modulate_backward(const Tensor& g, const Tensor& x, const Tensor& scale,
                                          const Tensor& mean, const Tensor& r, Tensor& dx, Tensor& dshift,
                                          Tensor& dscale);
        void gate_residual(const Tensor& h, const Tensor& gate, const Tensor& branch, Tensor& y);
        void gate_residual_backward(const Tensor& g, const Tensor& gate, const Tensor& branch,
                                    Tensor& dbranch, Tensor& dgate);)

const OpCase& modulate_case();
const OpCase& layer_norm_modulate_case();
const OpCase& gate_residual_case();

}  // namespace rivulet
