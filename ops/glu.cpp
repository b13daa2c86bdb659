#include "ops/glu.h"

#include "ops/fast_math.h"
#include "ops/half.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {

void glu_silu(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "glu_silu", [&]<class T>() {
    const int64_t c = y.dim(-1);
    parallel_for(y.numel() / c, std::max<int64_t>(1, 16384 / c), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *a = x.data<T>() + row * 2 * c, *g = a + c;
        T* out = y.data<T>() + row * c;
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) out[j] = a[j] * g[j] * sigmoid_of(g[j]);
      }
    });
  });
}

void glu_silu_backward(const Tensor& dy, const Tensor& x, Tensor& dx) {
  dispatch_real(x.dtype(), "glu_silu", [&]<class T>() {
    const int64_t c = dy.dim(-1);
    parallel_for(dy.numel() / c, std::max<int64_t>(1, 8192 / c), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *a = x.data<T>() + row * 2 * c, *g = a + c, *up = dy.data<T>() + row * c;
        T *da = dx.data<T>() + row * 2 * c, *dg = da + c;
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) {
          const T s = sigmoid_of(g[j]);
          da[j] = up[j] * g[j] * s;
          dg[j] = up[j] * a[j] * s * (T(1) + g[j] * (T(1) - s));
        }
      }
    });
  });
}

}  // namespace cpu

Tensor glu_silu(const Tensor& x) {
  check(x.dims() >= 1 && x.dim(-1) % 2 == 0 && x.dim(-1) > 0, "glu_silu: x has shape ", x.shape(),
        ", wanted an even number of channels");
  if (needs_f32({x})) return through_f32({x}, [](const Tensors& t) { return glu_silu(t[0]); });
  const Tensor in = x.contiguous();
  Shape shape = x.shape();
  shape[shape.size() - 1] /= 2;
  Tensor y(shape, x.dtype(), x.device());
  ON_DEVICE(x, glu_silu(in, y));
  return record("glu_silu", y, {in}, [x = in.detach()](const Tensor& dy) -> Tensors {
    Tensor dx = empty_like(x);
    const Tensor g = dy.contiguous();
    ON_DEVICE(x, glu_silu_backward(g, x, dx));
    return {dx};
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

}  // namespace rivulet
