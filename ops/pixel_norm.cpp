#include "ops/pixel_norm.h"

#include <cmath>

#include "ops/fast_math.h"
#include "ops/half.h"
#include "ops/rows.h"

namespace rivulet {
namespace cpu {
namespace {

template <class T>
T inverse_rms(const T* x, int64_t c, T eps) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < c; ++j) squares += x[j] * x[j];
  return T(1) / std::sqrt(squares / T(c) + eps);
}

}  // namespace

void pixel_norm_silu(const Tensor& x, double eps, Tensor& y) {
  dispatch_real(x.dtype(), "pixel_norm_silu", [&]<class T>() {
    const int64_t c = x.dim(-1);
    for_rows(x, [&](int64_t row) {
      const T *in = x.data<T>() + row * c, r = inverse_rms(in, c, T(eps));
      T* out = y.data<T>() + row * c;
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) out[j] = in[j] * r * sigmoid_of(in[j] * r);
    });
  });
}

void pixel_norm_silu_backward(const Tensor& g, const Tensor& x, double eps, Tensor& dx) {
  dispatch_real(x.dtype(), "pixel_norm_silu", [&]<class T>() {
    const int64_t c = x.dim(-1);
    for_rows(x, [&](int64_t row) {
      const T *in = x.data<T>() + row * c, *up = g.data<T>() + row * c, r = inverse_rms(in, c, T(eps));
      T *out = dx.data<T>() + row * c, dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < c; ++j) {
        const T n = in[j] * r, s = sigmoid_of(n);
        out[j] = up[j] * s * (T(1) + n * (T(1) - s));
        dot += out[j] * in[j];
      }
      const T pull = r * r * r * dot / T(c);
      for (int64_t j = 0; j < c; ++j) out[j] = r * out[j] - in[j] * pull;
    });
  });
}

}  // namespace cpu

Tensor pixel_norm_silu(const Tensor& x, double eps) {
  check(x.dims() >= 1 && x.dim(-1) > 0, "pixel_norm_silu: x has shape ", x.shape());
  if (needs_f32({x})) return through_f32({x}, [&](const Tensors& t) { return pixel_norm_silu(t[0], eps); });
  check_same_type("pixel_norm_silu", {x});
  const Tensor in = x.contiguous();
  Tensor y = empty_like(in);
  ON_DEVICE(x, pixel_norm_silu(in, eps, y));
  return record("pixel_norm_silu", y, {in}, [x = in.detach(), eps](const Tensor& dy) -> Tensors {
    Tensor dx = empty_like(x);
    const Tensor g = dy.contiguous();
    ON_DEVICE(x, pixel_norm_silu_backward(g, x, eps, dx));
    return {dx};
  });
}

const OpCase& pixel_norm_silu_case() {
  static const OpCase kCase = {
      .name = "pixel_norm_silu",
      .run = [](const Tensors& in) -> Tensors { return {pixel_norm_silu(in[0])}; },
      .check = {{{3, 5, 7}}, {{4, 2}}, {{2, 64}}, {{1, 33}}},
      .bench = {{{4, 36, 64, 128}}, {{1, 88, 160, 256}}},
      .bytes = [](const Shapes& s) { return 2 * bytes_of(s); },
      .flops = [](const Shapes& s) { return 5.0 * s[0].numel(); },
  };
  return kCase;
}

}  // namespace rivulet
