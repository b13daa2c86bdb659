#include "ops/modulate.h"

#include "ops/grouping.h"
#include "ops/half.h"
#include "ops/norm_rows.h"
#include "ops/rows.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace cpu {
namespace {

// Sums of g and of g * f(row, j) over each group's rows, into dshift and dscale where they are wanted.
template <class T, class Factor>
void sum_shift_and_scale(const Tensor& g, Factor factor, Tensor& dshift, Tensor& dscale) {
  if (!dshift && !dscale) return;
  const int64_t groups = g.dim(0), c = g.dim(2);
  Tensor both({groups, 2, c}, g.dtype(), g.device());
  sum_over_rows(groups, g.dim(1), 2 * c, both.data<T>(), [&](int64_t begin, int64_t end, int64_t, T* sums) {
    for (int64_t row = begin; row < end; ++row) {
      const T* up = g.data<T>() + row * c;
      const auto f = factor(row);
      for (int64_t j = 0; j < c; ++j) {
        sums[j] += up[j];
        sums[c + j] += up[j] * f(j);
      }
    }
  });
  if (dshift) dshift.copy_from(both.select(1, 0));
  if (dscale) dscale.copy_from(both.select(1, 1));
}

}  // namespace

void modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y) {
  dispatch_real(x.dtype(), "modulate", [&]<class T>() {
    const int64_t rows = x.dim(1), c = x.dim(2);
    for_rows(x, [&](int64_t row) {
      const T *in = x.data<T>() + row * c, *a = scale.data<T>() + row / rows * c,
              *b = shift.data<T>() + row / rows * c;
      T* out = y.data<T>() + row * c;
      for (int64_t j = 0; j < c; ++j) out[j] = in[j] * (T(1) + a[j]) + b[j];
    });
  });
}

void modulate_backward(const Tensor& g, const Tensor& x, const Tensor& scale, Tensor& dx, Tensor& dshift,
                       Tensor& dscale) {
  dispatch_real(g.dtype(), "modulate", [&]<class T>() {
    const int64_t rows = g.dim(1), c = g.dim(2);
    for_rows(g, [&](int64_t row) {
      const T *up = g.data<T>() + row * c, *a = scale.data<T>() + row / rows * c;
      T* out = dx.data<T>() + row * c;
      for (int64_t j = 0; j < c; ++j) out[j] = up[j] * (T(1) + a[j]);
    });
    sum_shift_and_scale<T>(
        g, [&](int64_t row) { return [in = x.data<T>() + row * c](int64_t j) { return in[j]; }; }, dshift,
        dscale);
  });
}

void layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps, Tensor& y,
                         Tensor& mean, Tensor& r) {
  dispatch_real(x.dtype(), "layer_norm_modulate", [&]<class T>() {
    const int64_t rows = x.dim(1), c = x.dim(2);
    for_rows(x, [&](int64_t row) {
      const T *in = x.data<T>() + row * c, *a = scale.data<T>() + row / rows * c,
              *b = shift.data<T>() + row / rows * c;
      T* out = y.data<T>() + row * c;
      const auto [mu, rstd] = row_moments(in, c, T(eps));
      mean.data<T>()[row] = mu;
      r.data<T>()[row] = rstd;
      for (int64_t j = 0; j < c; ++j) out[j] = (in[j] - mu) * rstd * (T(1) + a[j]) + b[j];
    });
  });
}

void layer_norm_modulate_backward(const Tensor& g, const Tensor& x, const Tensor& scale, const Tensor& mean,
                                  const Tensor& r, Tensor& dx, Tensor& dshift, Tensor& dscale) {
  dispatch_real(g.dtype(), "layer_norm_modulate", [&]<class T>() {
    const int64_t rows = g.dim(1), c = g.dim(2);
    const T *mu = mean.data<T>(), *rstd = r.data<T>();
    for_rows(g, [&](int64_t row) {
      const T* a = scale.data<T>() + row / rows * c;
      layer_norm_row_backward(
          c, g.data<T>() + row * c, x.data<T>() + row * c, mu[row], rstd[row],
          [a](int64_t j) { return T(1) + a[j]; }, dx.data<T>() + row * c);
    });
    sum_shift_and_scale<T>(
        g,
        [&](int64_t row) {
          return
              [in = x.data<T>() + row * c, m = mu[row], s = rstd[row]](int64_t j) { return (in[j] - m) * s; };
        },
        dshift, dscale);
  });
}

void gate_residual(const Tensor& h, const Tensor& gate, const Tensor& branch, Tensor& y) {
  dispatch_real(h.dtype(), "gate_residual", [&]<class T>() {
    const int64_t rows = h.dim(1), c = h.dim(2);
    for_rows(h, [&](int64_t row) {
      const T *in = h.data<T>() + row * c, *f = branch.data<T>() + row * c,
              *a = gate.data<T>() + row / rows * c;
      T* out = y.data<T>() + row * c;
      for (int64_t j = 0; j < c; ++j) out[j] = in[j] + a[j] * f[j];
    });
  });
}

void gate_residual_backward(const Tensor& g, const Tensor& gate, const Tensor& branch, Tensor& dbranch,
                            Tensor& dgate) {
  dispatch_real(g.dtype(), "gate_residual", [&]<class T>() {
    const int64_t rows = g.dim(1), c = g.dim(2);
    for_rows(g, [&](int64_t row) {
      const T *up = g.data<T>() + row * c, *a = gate.data<T>() + row / rows * c;
      T* out = dbranch.data<T>() + row * c;
      for (int64_t j = 0; j < c; ++j) out[j] = up[j] * a[j];
    });
    if (!dgate) return;
    sum_over_rows(g.dim(0), rows, c, dgate.data<T>(), [&](int64_t begin, int64_t end, int64_t, T* sums) {
      for (int64_t row = begin; row < end; ++row) {
        const T *up = g.data<T>() + row * c, *f = branch.data<T>() + row * c;
        for (int64_t j = 0; j < c; ++j) sums[j] += up[j] * f[j];
      }
    });
  });
}

}  // namespace cpu

Tensor modulate(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  if (needs_f32({x, shift, scale}))
    return through_f32({x, shift, scale}, [](const Tensors& t) { return modulate(t[0], t[1], t[2]); });
  check_same_type("modulate", {x, shift, scale});
  const Grouping by = grouping("modulate", x, {shift, scale});
  const Tensor in = by.tokens(x.detach()), a = by.per_group(scale.detach()), b = by.per_group(shift.detach());
  Tensor y = empty_like(in);
  ON_DEVICE(x, modulate(in, b, a, y));
  const bool need_shift = shift.requires_grad(), need_scale = scale.requires_grad();
  return record("modulate", y.reshape(x.shape()), {x, shift, scale},
                [=, shape_b = shift.shape(), shape_a = scale.shape()](const Tensor& dy) -> Tensors {
                  const Tensor g = by.tokens(dy);
                  Tensor dx = empty_like(g), db, da;
                  if (need_shift) db = by.empty(g);
                  if (need_scale) da = by.empty(g);
                  ON_DEVICE(g, modulate_backward(g, in, a, dx, db, da));
                  return {dx.reshape(by.full), by.gradient(db, shape_b), by.gradient(da, shape_a)};
                });
}

Tensor layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps) {
  if (needs_f32({x, shift, scale}))
    return through_f32({x, shift, scale},
                       [eps](const Tensors& t) { return layer_norm_modulate(t[0], t[1], t[2], eps); });
  check_same_type("layer_norm_modulate", {x, shift, scale});
  const Grouping by = grouping("layer_norm_modulate", x, {shift, scale});
  const Tensor in = by.tokens(x.detach()), a = by.per_group(scale.detach()), b = by.per_group(shift.detach());
  Tensor y = empty_like(in), mean({by.groups * by.rows}, accumulate_dtype(x.dtype()), x.device()),
         r = empty_like(mean);
  ON_DEVICE(x, layer_norm_modulate(in, b, a, eps, y, mean, r));
  const bool need_shift = shift.requires_grad(), need_scale = scale.requires_grad();
  return record("layer_norm_modulate", y.reshape(x.shape()), {x, shift, scale},
                [=, shape_b = shift.shape(), shape_a = scale.shape()](const Tensor& dy) -> Tensors {
                  const Tensor g = by.tokens(dy);
                  Tensor dx = empty_like(g), db, da;
                  if (need_shift) db = by.empty(g);
                  if (need_scale) da = by.empty(g);
                  ON_DEVICE(g, layer_norm_modulate_backward(g, in, a, mean, r, dx, db, da));
                  return {dx.reshape(by.full), by.gradient(db, shape_b), by.gradient(da, shape_a)};
                });
}

Tensor gate_residual(const Tensor& h, const Tensor& gate, const Tensor& branch) {
  if (needs_f32({h, gate, branch}))
    return through_f32({h, gate, branch}, [](const Tensors& t) { return gate_residual(t[0], t[1], t[2]); });
  check_same_type("gate_residual", {h, gate, branch});
  check(h.shape() == branch.shape(), "gate_residual: h has shape ", h.shape(), ", branch ", branch.shape());
  const Grouping by = grouping("gate_residual", h, {gate});
  const Tensor in = by.tokens(h.detach()), f = by.tokens(branch.detach()), a = by.per_group(gate.detach());
  Tensor y = empty_like(in);
  ON_DEVICE(h, gate_residual(in, a, f, y));
  const bool need_gate = gate.requires_grad();
  return record("gate_residual", y.reshape(h.shape()), {h, gate, branch},
                [=, shape_a = gate.shape()](const Tensor& dy) -> Tensors {
                  const Tensor g = by.tokens(dy);
                  Tensor df = empty_like(g), da;
                  if (need_gate) da = by.empty(g);
                  ON_DEVICE(g, gate_residual_backward(g, a, f, df, da));
                  return {dy, by.gradient(da, shape_a), df.reshape(by.full)};
                });
}

// --- Cases -------------------------------------------------------------------------------------------

namespace {

OpCase modulate_like(const char* name, Tensors (*run)(const Tensors&), double flops) {
  return {.name = name,
          .run = run,
          .check = {{{2, 3, 4}, {2, 1, 4}, {2, 1, 4}},
                    {{2, 3, 2, 5}, {2, 3, 1, 5}, {1, 3, 1, 5}},
                    {{1, 2}, {2}, {1, 2}},
                    {{2, 70, 3}, {2, 1, 3}, {3}}},
          .bench = {{{1, 1728, 768}, {1, 1, 768}, {1, 1, 768}}},
          .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
          .flops = [flops](const Shapes& s) { return flops * double(s[0].numel()); }};
}

}  // namespace

const OpCase& modulate_case() {
  static const OpCase the_case = modulate_like(
      "modulate", [](const Tensors& in) -> Tensors { return {modulate(in[0], in[1], in[2])}; }, 2);
  return the_case;
}

const OpCase& layer_norm_modulate_case() {
  static const OpCase the_case = modulate_like(
      "layer_norm_modulate",
      [](const Tensors& in) -> Tensors { return {layer_norm_modulate(in[0], in[1], in[2])}; }, 7);
  return the_case;
}

const OpCase& gate_residual_case() {
  static const OpCase the_case = {
      .name = "gate_residual",
      .run = [](const Tensors& in) -> Tensors { return {gate_residual(in[0], in[1], in[2])}; },
      .check = {{{2, 3, 4}, {2, 1, 4}, {2, 3, 4}},
                {{2, 3, 2, 5}, {1, 3, 1, 5}, {2, 3, 2, 5}},
                {{1, 1}, {1}, {1, 1}},
                {{2, 70, 3}, {3}, {2, 70, 3}}},
      .bench = {{{1, 1728, 768}, {1, 1, 768}, {1, 1728, 768}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel()); }};
  return the_case;
}

}  // namespace rivulet
