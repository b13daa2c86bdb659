#include "ops/rope.h"

#include <cmath>

#include "ops/half.h"
#include "ops/rows.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace {

std::vector<double> frequencies(int64_t d) {
  std::vector<double> omega(d / 2);
  for (int64_t i = 0; i < d / 2; ++i) omega[i] = std::pow(10000.0, -2.0 * double(i) / double(d));
  return omega;
}

}  // namespace

std::pair<Tensor, Tensor> rope_table(int64_t first_frame, int64_t frames, int64_t height, int64_t width,
                                     int64_t head_dim, DType dtype) {
  check(head_dim > 0 && head_dim % 2 == 0, "rope_table: head_dim is ", head_dim, ", wanted an even number");
  check(frames > 0 && height > 0 && width > 0, "rope_table: grid is ", frames, " x ", height, " x ", width);
  const int64_t space = 2 * (head_dim / 6), time = head_dim - 2 * space;
  const std::vector<double> omega_t = frequencies(time), omega_s = frequencies(space);
  const int64_t pairs = head_dim / 2;
  Tensor cos({frames * height * width, pairs}, accumulate_dtype(dtype)), sin = empty_like(cos);
  dispatch_real(cos.dtype(), "rope_table", [&]<class T>() {
    T *c = cos.data<T>(), *s = sin.data<T>();
    const auto put = [&](const std::vector<double>& omega, int64_t position) {
      for (double w : omega) {
        *c++ = T(std::cos(double(position) * w));
        *s++ = T(std::sin(double(position) * w));
      }
    };
    for (int64_t f = 0; f < frames; ++f)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) {
          put(omega_t, first_frame + f);
          put(omega_s, y);
          put(omega_s, x);
        }
  });
  return {cos.to(dtype), sin.to(dtype)};
}

namespace cpu {

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse, Tensor& y) {
  dispatch_real(x.dtype(), "rope", [&]<class T>() {
    const int64_t n = x.dim(1), h = x.dim(2), pairs = x.dim(3) / 2;
    const Shape& stride = x.strides();
    const T sign = inverse ? T(-1) : T(1);
    parallel_for(x.dim(0) * n, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *c = cos.data<T>() + row % n * pairs, *s = sin.data<T>() + row % n * pairs;
        const T* in = x.data<T>() + row / n * stride[0] + row % n * stride[1];
        T* out = y.data<T>() + row * h * pairs * 2;
        for (int64_t head = 0; head < h; ++head, in += stride[2], out += pairs * 2)
#pragma omp simd
          for (int64_t j = 0; j < pairs; ++j) {
            const T a = in[2 * j], b = in[2 * j + 1], sj = sign * s[j];
            out[2 * j] = a * c[j] - b * sj;
            out[2 * j + 1] = a * sj + b * c[j];
          }
      }
    });
  });
}

}  // namespace cpu

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check(x.dims() == 4 && x.dim(3) % 2 == 0, "rope: x has shape ", x.shape(), ", wanted [B, N, H, even D]");
  check(cos.shape() == Shape{x.dim(1), x.dim(3) / 2} && sin.shape() == cos.shape(),
        "rope: tables have shapes ", cos.shape(), " and ", sin.shape(), ", x ", x.shape());
  if (needs_f32({x})) return through_f32({x}, [&](const Tensors& t) { return rope(t[0], cos, sin); });
  const Tensor in = dense_rows(x);
  const DType wide = accumulate_dtype(x.dtype());
  const Tensor c = cos.detach().to(wide).contiguous(), s = sin.detach().to(wide).contiguous();
  Tensor y(x.shape(), x.dtype(), x.device());
  ON_DEVICE(x, rope(in, c, s, false, y));
  return record("rope", y, {in}, [c, s](const Tensor& dy) -> Tensors {
    const Tensor g = dense_rows(dy);
    Tensor dx(g.shape(), g.dtype(), g.device());
    ON_DEVICE(g, rope(g, c, s, true, dx));
    return {dx};
  });
}

const OpCase& rope_case() {
  static const OpCase kCase = {
      .name = "rope",
      .run = [](const Tensors& in) -> Tensors { return {rope(in[0], in[1], in[2])}; },
      .check = {{{2, 3, 3, 10}, {3, 5}, {3, 5}},
                {{1, 1, 1, 2}, {1, 1}, {1, 1}},
                {{1, 4, 2, 8}, {4, 4}, {4, 4}}},
      .bench = {{{1, 1728, 4, 32}, {1728, 16}, {1728, 16}}, {{1, 2640, 20, 112}, {2640, 56}, {2640, 56}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 3.0 * s[0].numel(); },
      .fill =
          [](const Shape& shape, int i, Rng& rng, DType dtype) {
            if (i == 0) return randn(shape, rng, dtype);
            const auto [cos, sin] = rope_table(5, shape[0], 1, 1, 2 * shape[1], dtype);
            return i == 1 ? cos : sin;
          },
      .differentiable = {true, false, false},
  };
  return kCase;
}

}  // namespace rivulet
