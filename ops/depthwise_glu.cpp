#include "ops/depthwise_glu.h"

#include "ops/depthwise.h"
#include "ops/depthwise_conv.h"
#include "ops/elementwise.h"
#include "ops/fast_math.h"
#include "ops/glu.h"
#include "ops/half.h"
#include "ops/rows.h"

namespace rivulet {
namespace cpu {
namespace {

Tensor taps_of(const Tensor& w) { return w.transpose(0, 1).contiguous(); }

Tensor activated(const Tensor& x, bool silu_first) {
  if (!silu_first) return x;
  Tensor y = empty_like(x);
  unary(UnaryOp::silu, x, 0, 0, y);
  return y;
}

}  // namespace

void depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias, bool silu_first, Tensor& y) {
  const Tensor in = activated(x, silu_first), taps = taps_of(w);
  dispatch_real(x.dtype(), "depthwise_glu", [&]<class T>() {
    const int64_t height = x.dim(1), width = x.dim(2), c = x.dim(3), half = c / 2;
    const std::vector<T> zero(c, T(0));
    const T* tap[9];
    for (int u = 0; u < 9; ++u) tap[u] = taps.data<T>() + u * c;
    parallel_for(x.dim(0) * height, 1, [&](int64_t row, int64_t) {
      const T* image = in.data<T>() + row / height * height * width * c;
      const auto mixed = scratch<T>(c);
      for (int64_t i = 0; i < width; ++i) {
        const T* p[9];
        neighbours(image, height, width, c, row % height, i, zero.data(), p);
        convolve(p, tap, bias.data<T>(), c, mixed.get());
        const T *a = mixed.get(), *g = a + half;
        T* out = y.data<T>() + (row * width + i) * half;
#pragma omp simd
        for (int64_t j = 0; j < half; ++j) out[j] = a[j] * g[j] * sigmoid_of(g[j]);
      }
    });
  });
}

void depthwise_glu_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& bias,
                            bool silu_first, Tensor& dx, Tensor& dw, Tensor& dbias) {
  const Tensor in = activated(x, silu_first), taps = taps_of(w);
  const int64_t c = x.dim(3), half = c / 2, pixels = x.numel() / c;
  Tensor m = empty_like(x), dm = empty_like(x), dtaps = empty_like(taps);
  depthwise_conv3x3(in, taps, bias, false, m);
  const Tensor rows = m.reshape({pixels, c}), drows = dm.reshape({pixels, c});
  mul_silu_backward(dy.reshape({pixels, half}), rows.slice(1, 0, half), rows.slice(1, half, c),
                    drows.slice(1, 0, half), drows.slice(1, half, c));
  depthwise_conv3x3_tap_grad(dm, in, dtaps);
  dw.copy_from(dtaps.transpose(0, 1));
  dbias.copy_from(rivulet::sum_to(drows, {1, c}).reshape({c}));
  if (!silu_first) return depthwise_conv3x3(dm, taps, Tensor(), true, dx);
  Tensor din = empty_like(x);
  depthwise_conv3x3(dm, taps, Tensor(), true, din);
  unary_backward(UnaryOp::silu, din, x, 0, 0, dx);
}

}  // namespace cpu

namespace {

Tensor gated(const char* name, const Tensor& x, const Tensor& w, const Tensor& bias, bool silu_first) {
  check(x.dims() == 4 && x.dim(3) % 2 == 0 && x.numel() > 0, name, ": x has shape ", x.shape(),
        ", wanted [B, H, W, an even number of channels]");
  const int64_t c = x.dim(3);
  check(w.shape() == Shape{c, 1, 3, 3} && bias.shape() == Shape{c}, name, ": w and bias have shapes ",
        w.shape(), " and ", bias.shape(), ", x ", x.shape());
  if (needs_f32({x, w, bias}))
    return through_f32({x, w, bias},
                       [&](const Tensors& t) { return gated(name, t[0], t[1], t[2], silu_first); });
  check_same_type(name, {x, w, bias});
  const Tensor in = x.contiguous(), filters = w.contiguous().reshape({c, 9}), add = bias.contiguous();
  Tensor y({x.dim(0), x.dim(1), x.dim(2), c / 2}, x.dtype(), x.device());
  ON_DEVICE(y, depthwise_glu(in, filters, add, silu_first, y));
  return record(name, y, {in, filters, add},
                [=, x = in.detach(), w = filters.detach(), bias = add.detach()](const Tensor& dy) -> Tensors {
                  Tensor dx = empty_like(x), dw = empty_like(w), dbias = empty_like(bias);
                  const Tensor g = dy.contiguous();
                  ON_DEVICE(x, depthwise_glu_backward(g, x, w, bias, silu_first, dx, dw, dbias));
                  return {dx, dw, dbias};
                });
}

OpCase gated_case(const char* name, Tensor (*op)(const Tensor&, const Tensor&, const Tensor&)) {
  return {
      .name = name,
      .run = [op](const Tensors& in) -> Tensors { return {op(in[0], in[1], in[2])}; },
      .check = {{{2, 4, 3, 6}, {6, 1, 3, 3}, {6}},
                {{1, 1, 1, 2}, {2, 1, 3, 3}, {2}},
                {{1, 7, 1, 8}, {8, 1, 3, 3}, {8}},
                {{2, 5, 9, 4}, {4, 1, 3, 3}, {4}},
                {{1, 3, 9, 128}, {128, 1, 3, 3}, {128}}},  // of the kind that the GPU takes by tiles
      .bench = {{{3, 18, 32, 768}, {768, 1, 3, 3}, {768}},
                {{2, 7, 13, 256}, {256, 1, 3, 3}, {256}},
                {{3, 22, 40, 13440}, {13440, 1, 3, 3}, {13440}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}) / 2; },
      .flops = [](const Shapes& s) { return 19.5 * s[0].numel(); },
      // The backward keeps dm, a product of three normal factors, in bf16: nine of its rounding errors, of
      // values far above the mean here and there, meet in one dx that may be small.
      .bf16_tolerance = 0x1p-5,
  };
}

}  // namespace

Tensor depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias) {
  return gated("depthwise_glu", x, w, bias, false);
}
Tensor silu_depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias) {
  return gated("silu_depthwise_glu", x, w, bias, true);
}

const OpCase& depthwise_glu_case() {
  static const OpCase kCase = gated_case("depthwise_glu", depthwise_glu);
  return kCase;
}
const OpCase& silu_depthwise_glu_case() {
  static const OpCase kCase = gated_case("silu_depthwise_glu", silu_depthwise_glu);
  return kCase;
}

}  // namespace rivulet
