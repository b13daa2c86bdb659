#include "ops/residual_norm.h"

#include "ops/modulate.h"
#include "ops/norm_pass.cuh"

namespace rivulet::cuda {

void gate_residual_norm(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                        const Tensor& scale, double eps, Tensor& y, Tensor& u, Tensor& mean, Tensor& r) {
  const RowNorm norm{.centred = true, .offset = 1, .rows_per_group = h.dim(1)};
  if (norm_pass({.norm = norm,
                 .eps = eps,
                 .x = h,
                 .branch = branch,
                 .gate = gate,
                 .sum = y,
                 .w = scale,
                 .b = shift,
                 .y = u,
                 .mean = mean,
                 .r = r}))
    return;
  gate_residual(h, gate ? gate : ones(shift.shape(), h.dtype(), h.device()), branch, y);
  layer_norm_modulate(y, shift, scale, eps, u, mean, r);
}

void gate_residual_norm_backward(const Tensor& dy, const Tensor& du, const Tensor& y, const Tensor& gate,
                                 const Tensor& branch, const Tensor& scale, const Tensor& mean,
                                 const Tensor& r, Tensor& dh, Tensor& dbranch, Tensor& dgate, Tensor& dshift,
                                 Tensor& dscale) {
  const RowNorm norm{.centred = true, .offset = 1, .rows_per_group = y.dim(1)};
  if (norm_pass_backward({.norm = norm,
                          .g = du,
                          .x = y,
                          .w = scale,
                          .mean = mean,
                          .r = r,
                          .direct = dy,
                          .branch = branch,
                          .gate = gate,
                          .dx = dh,
                          .dbranch = dbranch,
                          .dw = dscale,
                          .db = dshift,
                          .dgate = dgate}))
    return;
  layer_norm_modulate_backward(du ? du : zeros_like(y), y, scale, mean, r, dh, dshift, dscale);
  if (dy) dh.add_in_place(dy);
  if (gate) gate_residual_backward(dh, gate, branch, dbranch, dgate);
}

}  // namespace rivulet::cuda
