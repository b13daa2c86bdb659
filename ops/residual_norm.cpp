#include "ops/residual_norm.h"

#include "ops/grouping.h"
#include "ops/half.h"
#include "ops/modulate.h"
#include "ops/norm.h"

namespace rivulet {
namespace cpu {

void gate_residual_norm(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                        const Tensor& scale, double eps, Tensor& y, Tensor& u, Tensor& mean, Tensor& r) {
  gate_residual(h, gate ? gate : ones(shift.shape(), h.dtype()), branch, y);
  layer_norm_modulate(y, shift, scale, eps, u, mean, r);
}

void gate_residual_norm_backward(const Tensor& dy, const Tensor& du, const Tensor& y, const Tensor& gate,
                                 const Tensor& branch, const Tensor& scale, const Tensor& mean,
                                 const Tensor& r, Tensor& dh, Tensor& dbranch, Tensor& dgate, Tensor& dshift,
                                 Tensor& dscale) {
  layer_norm_modulate_backward(du ? du : zeros_like(y), y, scale, mean, r, dh, dshift, dscale);
  if (dy) dh.add_in_place(dy);
  if (gate) gate_residual_backward(dh, gate, branch, dbranch, dgate);
}

}  // namespace cpu

ResidualNorm gate_residual_norm(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                                const Tensor& scale, double eps) {
  const Tensors given{h, gate, branch, shift, scale};
  if (needs_f32(given)) {
    Tensors wide = given;
    for (Tensor& t : wide)
      if (t && is_half(t.dtype())) t = t.to(DType::f32);
    const ResidualNorm y = gate_residual_norm(wide[0], wide[1], wide[2], wide[3], wide[4], eps);
    return {y.h.to(h.dtype()), y.u.to(h.dtype())};
  }
  check_same_type("gate_residual_norm", given);
  check(h.shape() == branch.shape(), "gate_residual_norm: h has shape ", h.shape(), ", branch ",
        branch.shape());
  Tensors vectors{shift, scale};
  if (gate) vectors.push_back(gate);
  const Grouping by = grouping("gate_residual_norm", h, vectors);
  const Tensor in = by.tokens(h.detach()), f = by.tokens(branch.detach()), b = by.per_group(shift.detach()),
               a = by.per_group(scale.detach()), z = gate ? by.per_group(gate.detach()) : Tensor();
  Tensor y = empty_like(in), u = empty_like(in),
         mean({by.groups * by.rows}, accumulate_dtype(h.dtype()), h.device()), r = empty_like(mean);
  ON_DEVICE(h, gate_residual_norm(in, z, f, b, a, eps, y, u, mean, r));
  const bool need_gate = gate && gate.requires_grad(), need_shift = shift.requires_grad(),
             need_scale = scale.requires_grad();
  Tensors inputs{h, branch, shift, scale};
  if (gate) inputs.push_back(gate);
  const Tensors outputs =
      record("gate_residual_norm", {y.reshape(h.shape()), u.reshape(h.shape())}, inputs,
             [=, shape_b = shift.shape(), shape_a = scale.shape(),
              shape_z = gate ? gate.shape() : Shape{}](const Tensors& g) -> Tensors {
               const Tensor dy = g[0] ? by.tokens(g[0]) : Tensor(), du = g[1] ? by.tokens(g[1]) : Tensor();
               Tensor dh = empty_like(y), df, dz, db, da;
               if (z) df = empty_like(y);
               if (need_gate) dz = by.empty(y);
               if (need_shift) db = by.empty(y);
               if (need_scale) da = by.empty(y);
               ON_DEVICE(y, gate_residual_norm_backward(dy, du, y, z, f, a, mean, r, dh, df, dz, db, da));
               dh = dh.reshape(by.full);
               Tensors grads{dh, z ? df.reshape(by.full) : dh, by.gradient(db, shape_b),
                             by.gradient(da, shape_a)};
               if (z) grads.push_back(by.gradient(dz, shape_z));
               return grads;
             });
  return {outputs[0], outputs[1]};
}

const OpCase& gate_residual_norm_case() {
  static const OpCase the_case = {
      .name = "gate_residual_norm",
      .run = [](const Tensors& in) -> Tensors {
        const auto [h, u] = gate_residual_norm(in[0], in[1], in[2], in[3], in[4]);
        return {h, u};
      },
      .check = {{{2, 3, 4}, {2, 1, 4}, {2, 3, 4}, {2, 1, 4}, {2, 1, 4}},
                {{2, 3, 2, 5}, {2, 3, 1, 5}, {2, 3, 2, 5}, {1, 3, 1, 5}, {1, 1, 1, 5}},
                {{1, 2}, {2}, {1, 2}, {1, 2}, {2}},
                {{2, 35, 8}, {8}, {2, 35, 8}, {2, 1, 8}, {8}}},
      .bench = {{{1, 1728, 128}, {1, 1, 128}, {1, 1728, 128}, {1, 1, 128}, {1, 1, 128}},
                {{1, 2640, 2240}, {1, 1, 2240}, {1, 2640, 2240}, {1, 1, 2240}, {1, 1, 2240}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + 2 * bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 9.0 * double(s[0].numel()); }};
  return the_case;
}

const OpCase& residual_norm_case() {
  static const OpCase the_case = {
      .name = "residual_norm",
      .run = [](const Tensors& in) -> Tensors {
        const auto [h, u] = gate_residual_norm(in[0], {}, in[1], in[2], in[3]);
        return {h, u};
      },
      .check = {{{2, 3, 4}, {2, 3, 4}, {2, 1, 4}, {2, 1, 4}}, {{2, 35, 8}, {2, 35, 8}, {2, 1, 8}, {8}}},
      .bench = {{{1, 2640, 2240}, {1, 2640, 2240}, {1, 1, 2240}, {1, 1, 2240}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + 2 * bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 8.0 * double(s[0].numel()); }};
  return the_case;
}

}  // namespace rivulet
