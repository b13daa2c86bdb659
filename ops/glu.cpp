#include "ops/glu.h"

#include "ops/fast_math.h"
#include "ops/half.h"
#include "ops/rows.h"

namespace rivulet {
namespace cpu {
namespace {

template <class T>
Rows<T> rows_of(const Tensor& x) {
  return {x.data<T>(), x.strides()[0]};
}

}  // namespace

void mul_silu(const Tensor& a, const Tensor& g, Tensor& y) {
  dispatch_real(a.dtype(), "glu_silu", [&]<class T>() {
    const auto as = rows_of<T>(a), gs = rows_of<T>(g);
    for_rows(y, [&](int64_t row) {
      const T *in = as[row], *gate = gs[row];
      T* out = y.data<T>() + row * y.dim(1);
#pragma omp simd
      for (int64_t j = 0; j < y.dim(1); ++j) out[j] = in[j] * gate[j] * sigmoid_of(gate[j]);
    });
  });
}

void mul_silu_backward(const Tensor& dy, const Tensor& a, const Tensor& g, const Tensor& da,
                       const Tensor& dg) {
  dispatch_real(dy.dtype(), "glu_silu", [&]<class T>() {
    const auto as = rows_of<T>(a), gs = rows_of<T>(g), das = rows_of<T>(da), dgs = rows_of<T>(dg);
    for_rows(dy, [&](int64_t row) {
      const T *in = as[row], *gate = gs[row], *up = dy.data<T>() + row * dy.dim(1);
      T *to_a = das[row], *to_g = dgs[row];
#pragma omp simd
      for (int64_t j = 0; j < dy.dim(1); ++j) {
        const T s = sigmoid_of(gate[j]);
        to_a[j] = up[j] * gate[j] * s;
        to_g[j] = up[j] * in[j] * s * (T(1) + gate[j] * (T(1) - s));
      }
    });
  });
}

}  // namespace cpu

namespace {

// [..., C] as [rows, C] with dense rows: a view where the strides allow it.
Tensor as_rows(const Tensor& x) { return dense_rows(x.detach().reshape({-1, x.dim(-1)})); }

}  // namespace

Tensor mul_silu(const Tensor& a, const Tensor& g) {
  check(a.dims() >= 1 && a.numel() > 0 && a.shape() == g.shape(), "mul_silu: a has shape ", a.shape(), ", g ",
        g.shape());
  if (needs_f32({a, g})) return through_f32({a, g}, [](const Tensors& t) { return mul_silu(t[0], t[1]); });
  check_same_type("mul_silu", {a, g});
  const Tensor in = as_rows(a), gate = as_rows(g);
  Tensor y(in.shape(), a.dtype(), a.device());
  ON_DEVICE(y, mul_silu(in, gate, y));
  return record("mul_silu", y.reshape(a.shape()), {a, g}, [=, shape = a.shape()](const Tensor& dy) -> Tensors {
    const Tensor up = dy.contiguous().reshape(in.shape());
    const Tensor da = empty_like(up), dg = empty_like(up);
    ON_DEVICE(up, mul_silu_backward(up, in, gate, da, dg));
    return {da.reshape(shape), dg.reshape(shape)};
  });
}

Tensor glu_silu(const Tensor& x) {
  check(x.dims() >= 1 && x.dim(-1) % 2 == 0 && x.numel() > 0, "glu_silu: x has shape ", x.shape(),
        ", wanted an even number of channels");
  if (needs_f32({x})) return through_f32({x}, [](const Tensors& t) { return glu_silu(t[0]); });
  check_same_type("glu_silu", {x});
  const int64_t c = x.dim(-1) / 2;
  const Tensor in = as_rows(x);
  Shape shape = x.shape();
  shape[shape.size() - 1] = c;
  Tensor y({in.dim(0), c}, x.dtype(), x.device());
  ON_DEVICE(y, mul_silu(in.slice(1, 0, c), in.slice(1, c, 2 * c), y));
  return record("glu_silu", y.reshape(shape), {x}, [=, full = x.shape()](const Tensor& dy) -> Tensors {
    const Tensor up = dy.contiguous().reshape({in.dim(0), c}), dx(in.shape(), in.dtype(), in.device());
    ON_DEVICE(up, mul_silu_backward(up, in.slice(1, 0, c), in.slice(1, c, 2 * c), dx.slice(1, 0, c),
                                    dx.slice(1, c, 2 * c)));
    return {dx.reshape(full)};
  });
}

const OpCase& glu_silu_case() {
  static const OpCase kCase = {
      .name = "glu_silu",
      .run = [](const Tensors& in) -> Tensors { return {glu_silu(in[0])}; },
      .check = {{{3, 5, 14}}, {{2}}, {{2, 64}}},
      .bench = {{{1728, 768}}, {{2640, 13440}}},
      .bytes = [](const Shapes& s) { return 1.5 * bytes_of(s); },
      .flops = [](const Shapes& s) { return 3.0 * s[0].numel(); },
  };
  return kCase;
}

const OpCase& mul_silu_case() {
  static const OpCase kCase = {
      .name = "mul_silu",
      .run = [](const Tensors& in) -> Tensors { return {mul_silu(in[0], in[1])}; },
      .check = {{{3, 5, 7}, {3, 5, 7}}, {{1}, {1}}, {{2, 64}, {2, 64}}},
      .bench = {{{1728, 128}, {1728, 128}}, {{2640, 2240}, {2640, 2240}}},
      .bytes = [](const Shapes& s) { return 1.5 * bytes_of(s); },
      .flops = [](const Shapes& s) { return 3.0 * s[0].numel(); },
  };
  return kCase;
}

}  // namespace rivulet
