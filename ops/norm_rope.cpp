#include "ops/norm_rope.h"

#include "ops/half.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/rows.h"

namespace rivulet {
namespace cpu {
namespace {

// [rows, C] as [batch, N, heads, D].
Tensor per_head(const Tensor& x, const Tensor& cos) {
  const int64_t n = cos.dim(0), d = 2 * cos.dim(1);
  return x.reshape({x.dim(0) / n, n, x.dim(1) / d, d});
}

}  // namespace

void rms_norm_rope(const Tensor& x, const Tensor& w, const Tensor& cos, const Tensor& sin, double eps,
                   const Tensor& y, const Tensor& r) {
  const Tensor in = x.contiguous();
  Tensor h = empty_like(in), inverse = r, rotated = empty_like(per_head(h, cos));
  rms_norm(in, w, eps, 0, h, inverse);
  rope(per_head(h, cos), cos, sin, false, rotated);
  y.copy_from(rotated.reshape(y.shape()));
}

void rms_norm_rope_backward(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& cos,
                            const Tensor& sin, const Tensor& r, Tensor& dx, Tensor& dw) {
  const Tensor turned = per_head(g, cos);
  Tensor back = empty_like(turned);
  rope(turned, cos, sin, true, back);
  rms_norm_backward(back.reshape(g.shape()), x.contiguous(), w, 0, r, dx, dw);
}

}  // namespace cpu

Tensor rms_norm_rope(const Tensor& x, const Tensor& w, const Tensor& cos, const Tensor& sin, double eps,
                     const Tensor& into) {
  check(x.dims() == 3 && cos.dims() == 2 && x.numel() > 0, "rms_norm_rope: x has shape ", x.shape(),
        ", tables ", cos.shape(), ", wanted [B, N, C] and [N, D / 2]");
  const int64_t batch = x.dim(0), n = x.dim(1), c = x.dim(2), d = 2 * cos.dim(1);
  check(cos.dim(0) == n && sin.shape() == cos.shape() && d > 0 && c % d == 0, "rms_norm_rope: x has shape ",
        x.shape(), ", tables ", cos.shape(), " and ", sin.shape());
  check(w.shape() == Shape{c}, "rms_norm_rope: w has shape ", w.shape(), ", x ", x.shape());
  const Shape shape{batch, n, c / d, d};
  if (into) {
    check(!will_record({x, w}), "rms_norm_rope: a result that goes into given memory has no gradient");
    check(into.shape() == shape && into.dtype() == x.dtype(), "rms_norm_rope: into has shape ", into.shape(),
          " ", into.dtype(), ", the result ", shape, " ", x.dtype());
  }
  if (needs_f32({x, w})) {
    const Tensor y =
        through_f32({x, w}, [&](const Tensors& t) { return rms_norm_rope(t[0], t[1], cos, sin, eps); });
    return into ? into.copy_from(y) : y;
  }
  check_same_type("rms_norm_rope", {x, w});
  const DType wide = accumulate_dtype(x.dtype());
  const Tensor ct = cos.detach().to(wide).contiguous(), st = sin.detach().to(wide).contiguous();
  const Tensor scale = w.detach().contiguous(), in = dense_rows(x.detach());
  const Tensor r({batch * n}, wide, x.device());
  if (into)
    check(into.strides()[3] == 1 && into.strides()[2] == d, "rms_norm_rope: into has strides ",
          into.strides(), ", its tokens must be dense");
  const Tensor y = into ? into : Tensor(shape, x.dtype(), x.device());
  // One call where the rows of all entries lie at one distance, otherwise one per entry.
  const auto uniform = [&](const Tensor& t) { return batch == 1 || t.strides()[0] == n * t.strides()[1]; };
  const int64_t calls = uniform(in) && uniform(y) ? 1 : batch, entries = batch / calls;
  for (int64_t i = 0; i < calls; ++i) {
    const Tensor rows = in.slice(0, i * entries, (i + 1) * entries).reshape({entries * n, c});
    const Tensor out = y.slice(0, i * entries, (i + 1) * entries).reshape({entries * n, c});
    const Tensor inverse = r.slice(0, i * entries * n, (i + 1) * entries * n);
    ON_DEVICE(x, rms_norm_rope(rows, scale, ct, st, eps, out, inverse));
  }
  if (into) return into;
  const bool need_w = w.requires_grad();
  return record("rms_norm_rope", y, {x, w}, [=](const Tensor& dy) -> Tensors {
    const Tensor g = dense_rows(dy.reshape({batch * n, c})), rows = dense_rows(in.reshape({batch * n, c}));
    Tensor dx(rows.shape(), rows.dtype(), rows.device()), dw = need_w ? empty_like(scale) : Tensor();
    ON_DEVICE(g, rms_norm_rope_backward(g, rows, scale, ct, st, r, dx, dw));
    return {dx.reshape({batch, n, c}), dw};
  });
}

const OpCase& rms_norm_rope_case() {
  static const OpCase the_case = {
      .name = "rms_norm_rope",
      .run = [](const Tensors& in) -> Tensors { return {rms_norm_rope(in[0], in[1], in[2], in[3])}; },
      .check = {{{2, 3, 12}, {12}, {3, 2}, {3, 2}},
                {{1, 1, 2}, {2}, {1, 1}, {1, 1}},
                {{2, 5, 48}, {48}, {5, 8}, {5, 8}}},
      .bench = {{{1, 1728, 128}, {128}, {1728, 16}, {1728, 16}},
                {{1, 2640, 2240}, {2240}, {2640, 56}, {2640, 56}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 7.0 * double(s[0].numel()); },
      .fill =
          [](const Shape& shape, int i, Rng& rng, DType dtype) {
            if (i < 2) return randn(shape, rng, dtype);
            const auto [cos, sin] = rope_table(5, shape[0], 1, 1, 2 * shape[1], dtype);
            return i == 2 ? cos : sin;
          },
      .differentiable = {true, true, false, false}};
  return the_case;
}

}  // namespace rivulet
