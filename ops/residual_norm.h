// A residual step of an adaLN transformer and the norm of what follows, in one pass: the residual stream is
// read once and written once.
//
//   h' = h + gate * branch,   u = layer_norm(h') (1 + scale) + shift
//
// dh' is the sum of what comes back for h' and through u (ops/modulate.h, ops/norm.h); then dh = dh',
// dbranch = dh' gate, dgate = sum of dh' branch. Saves h', branch, and mean and r per row.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

struct ResidualNorm {
  Tensor h, u;
};
// h, branch [..., C]; gate, shift, scale broadcast to it as in ops/modulate.h. An undefined gate counts as
// ones.
ResidualNorm gate_residual_norm(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                                const Tensor& scale, double eps = 1e-6);

// Dense: h, branch, y, u and their gradients [groups, rows, C], vectors [groups, C], mean and r
// [groups * rows]. Undefined dy or du: zeros. Without a gate dbranch is undefined: it is dh. Undefined dgate,
// dshift and dscale are not computed.
KERNELS(void gate_residual_norm(const Tensor& h, const Tensor& gate, const Tensor& branch,
                                const Tensor& shift, const Tensor& scale, double eps, Tensor& y, Tensor& u,
                                Tensor& mean, Tensor& r);
        void gate_residual_norm_backward(const Tensor& dy, const Tensor& du, const Tensor& y,
                                         const Tensor& gate, const Tensor& branch, const Tensor& scale,
                                         const Tensor& mean, const Tensor& r, Tensor& dh, Tensor& dbranch,
                                         Tensor& dgate, Tensor& dshift, Tensor& dscale);)

const OpCase& gate_residual_norm_case();
const OpCase& residual_norm_case();  // without a gate

}  // namespace rivulet
