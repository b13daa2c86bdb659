#include "ops/image.h"

#include <algorithm>
#include <cmath>

#include "ops/half.h"
#include "tensor/parallel.h"

namespace rivulet {

Resampling resampling(int64_t n, int64_t m, bool transposed) {
  const double step = double(n) / double(m), reach = std::max(1.0, step);
  std::vector<std::vector<double>> rows(transposed ? n : m);
  Resampling r;
  r.first.assign(rows.size(), 0);
  for (int64_t o = 0; o < m; ++o) {
    const double centre = (double(o) + 0.5) * step - 0.5;
    const int64_t begin = std::max<int64_t>(0, int64_t(std::ceil(centre - reach)));
    const int64_t end = std::min<int64_t>(n, int64_t(std::floor(centre + reach)) + 1);
    std::vector<double> w;
    double total = 0;
    for (int64_t i = begin; i < end; ++i) {
      w.push_back(std::max(0.0, 1 - std::abs(double(i) - centre) / reach));
      total += w.back();
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = transposed ? i : o, column = transposed ? o : i;
      if (rows[row].empty()) r.first[row] = column;
      rows[row].push_back(w[i - begin] / total);
    }
  }
  r.offset.push_back(0);
  for (const auto& row : rows) {
    r.weights.insert(r.weights.end(), row.begin(), row.end());
    r.offset.push_back(int64_t(r.weights.size()));
  }
  return r;
}

namespace cpu {
namespace {

// f(values in, values out) for every pixel of three channels.
template <class T, class F>
void for_each_pixel(const Tensor& x, Tensor& y, F&& f) {
  const T* in = x.data<T>();
  T* out = y.data<T>();
  parallel_for(x.numel() / 3, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(in + 3 * i, out + 3 * i);
  });
}

// out = weighted sum of neighbouring pixels of three channels, kept in registers.
template <class T>
void weigh_pixels(const T* in, const T* w, int64_t taps, T* out) {
  T a = 0, b = 0, c = 0;
  for (int64_t k = 0; k < taps; ++k, in += 3) {
    a += w[k] * in[0];
    b += w[k] * in[1];
    c += w[k] * in[2];
  }
  out[0] = a;
  out[1] = b;
  out[2] = c;
}

}  // namespace

void resample(const Tensor& x, const Resampling& matrix, Tensor& y) {
  dispatch_real(x.dtype(), "resize", [&]<class T>() {
    const int64_t n = x.dim(1), m = y.dim(1), inner = x.dim(2);
    const std::vector<T> weights(matrix.weights.begin(), matrix.weights.end());
    parallel_for(x.dim(0) * m, std::max<int64_t>(1, 4096 / inner), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t o = row % m, taps = matrix.offset[o + 1] - matrix.offset[o];
        const T *in = x.data<T>() + (row / m * n + matrix.first[o]) * inner,
                *w = weights.data() + matrix.offset[o];
        T* out = y.data<T>() + row * inner;
        if (inner == 3) {
          weigh_pixels(in, w, taps, out);
        } else {
          std::fill_n(out, inner, T(0));
          for (int64_t k = 0; k < taps; ++k, in += inner)
            for (int64_t j = 0; j < inner; ++j) out[j] += w[k] * in[j];
        }
      }
    });
  });
}

void color_map(const Tensor& x, const ColorMap& map, Tensor& y) {
  dispatch_real(x.dtype(), "color_map", [&]<class T>() {
    T m[9], s[3];
    std::copy(map.matrix.begin(), map.matrix.end(), m);
    std::copy(map.shift.begin(), map.shift.end(), s);
    for_each_pixel<T>(x, y, [&](const T* in, T* out) {
      const T a = in[0], b = in[1], c = in[2];
      out[0] = m[0] * a + m[1] * b + m[2] * c + s[0];
      out[1] = m[3] * a + m[4] * b + m[5] * c + s[1];
      out[2] = m[6] * a + m[7] * b + m[8] * c + s[2];
    });
  });
}

void u8_to_unit(const Tensor& x, Tensor& y) {
  const uint8_t* in = x.data<uint8_t>();
  float* out = y.data<float>();
  parallel_for(x.numel(), 65536, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = float(in[i]) / 255.f;
  });
}

void unit_to_u8(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "unit_to_u8", [&]<class T>() {
    const T* in = x.data<T>();
    uint8_t* out = y.data<uint8_t>();
    parallel_for(x.numel(), 65536, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T low = in[i] > T(0) ? in[i] : T(0);  // also turns NaN into 0
        out[i] = uint8_t((low < T(1) ? low : T(1)) * T(255) + T(0.5));
      }
    });
  });
}

void rgb_to_hsv(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "rgb_to_hsv", [&]<class T>() {
    for_each_pixel<T>(x, y, [](const T* in, T* out) {
      const T r = in[0], g = in[1], b = in[2];
      const T top = std::max({r, g, b}), range = top - std::min({r, g, b});
      T sextant = 0;
      if (range > T(0)) {
        if (top == r)
          sextant = (g - b) / range;
        else if (top == g)
          sextant = T(2) + (b - r) / range;
        else
          sextant = T(4) + (r - g) / range;
      }
      out[0] = (sextant < T(0) ? sextant + T(6) : sextant) / T(6);
      out[1] = top > T(0) ? range / top : T(0);
      out[2] = top;
    });
  });
}

void hsv_to_rgb(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "hsv_to_rgb", [&]<class T>() {
    for_each_pixel<T>(x, y, [](const T* in, T* out) {
      const T h = in[0] - std::floor(in[0]), s = in[1], v = in[2];
      // Red, green and blue are the same trapezoid of hue, a third of a turn apart.
      for (int c = 0; c < 3; ++c) {
        const T turned = T(c == 0   ? 5
                           : c == 1 ? 3
                                    : 1) +
                         T(6) * h,
                k = turned < T(6) ? turned : turned - T(6);
        out[c] = v - v * s * std::clamp(std::min(k, T(4) - k), T(0), T(1));
      }
    });
  });
}

}  // namespace cpu

namespace {

// Resamples dim 1 of x [outer, n, inner], seen as such, to m.
Tensor resample_dim(const Tensor& x, int dim, int64_t m, const Resampling& matrix) {
  Shape shape = x.shape();
  shape[dim] = m;
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < dim; ++i) outer *= x.dim(i);
  for (int i = dim + 1; i < x.dims(); ++i) inner *= x.dim(i);
  Tensor y({outer, m, inner}, x.dtype(), x.device());
  const Tensor in = x.reshape({outer, x.dim(dim), inner});
  ON_DEVICE(x, resample(in, matrix, y));
  return y.reshape(shape);
}

// Resamples rows from h0 to h and columns from w0 to w; the one that shrinks more goes first.
Tensor resample_both(const Tensor& x, int64_t h0, int64_t w0, int64_t h, int64_t w, bool transposed) {
  const Resampling rows = transposed ? resampling(h, h0, true) : resampling(h0, h, false);
  const Resampling columns = transposed ? resampling(w, w0, true) : resampling(w0, w, false);
  if (h * w0 <= h0 * w) return resample_dim(resample_dim(x, 1, h, rows), 2, w, columns);
  return resample_dim(resample_dim(x, 2, w, columns), 1, h, rows);
}

Tensor apply_color_map(const char* name, const Tensor& x, const ColorMap& map) {
  check(x.dims() >= 1 && x.dim(-1) == 3, name, ": x has shape ", x.shape(), ", wanted [..., 3]");
  if (any_half({x}))
    return through_f32({x}, [&](const Tensors& t) { return apply_color_map(name, t[0], map); });
  const Tensor in = x.contiguous();
  Tensor y = empty_like(in);
  ON_DEVICE(x, color_map(in, map, y));
  return record(name, y, {in}, [map](const Tensor& dy) -> Tensors {
    const auto& m = map.matrix;
    const ColorMap back{{m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]}, {}};
    const Tensor g = dy.contiguous();
    Tensor dx = empty_like(g);
    ON_DEVICE(g, color_map(g, back, dx));
    return {dx};
  });
}

// A pixel op off the tape: kernel(dense x, y) with y of x's shape.
template <class Kernel>
Tensor without_gradient(const char* name, const Tensor& x, Kernel&& kernel) {
  check(x.dims() >= 1 && x.dim(-1) == 3, name, ": x has shape ", x.shape(), ", wanted [..., 3]");
  const Tensor in = x.detach().to(accumulate_dtype(x.dtype())).contiguous();
  Tensor y = empty_like(in);
  kernel(in, y);
  return y.to(x.dtype());
}

}  // namespace

Tensor resize(const Tensor& x, int64_t height, int64_t width) {
  check(x.dims() == 4 && x.numel() > 0, "resize: x has shape ", x.shape(), ", wanted [F, H, W, C]");
  check(height > 0 && width > 0, "resize: cannot resize to ", height, " x ", width);
  if (any_half({x})) return through_f32({x}, [&](const Tensors& t) { return resize(t[0], height, width); });
  const int64_t h0 = x.dim(1), w0 = x.dim(2);
  const Tensor in = x.contiguous();
  const Tensor y = resample_both(in.detach(), h0, w0, height, width, false);
  return record("resize", y, {in}, [=](const Tensor& dy) -> Tensors {
    return {resample_both(dy.contiguous(), height, width, h0, w0, true)};
  });
}

Tensor crop(const Tensor& x, int64_t top, int64_t left, int64_t height, int64_t width) {
  check(x.dims() == 4, "crop: x has shape ", x.shape(), ", wanted [F, H, W, C]");
  check(top >= 0 && left >= 0 && height > 0 && width > 0 && top + height <= x.dim(1) &&
            left + width <= x.dim(2),
        "crop: ", height, " x ", width, " at ", top, ", ", left, " is not inside ", x.shape());
  return x.slice(1, top, top + height).slice(2, left, left + width);
}

Tensor u8_to_unit(const Tensor& x) {
  check(x.dtype() == DType::u8, "u8_to_unit: x is ", x.dtype());
  const Tensor in = x.contiguous();
  Tensor y(x.shape(), DType::f32, x.device());
  ON_DEVICE(x, u8_to_unit(in, y));
  return y;
}

Tensor unit_to_u8(const Tensor& x) {
  check(is_floating(x.dtype()), "unit_to_u8: x is ", x.dtype());
  const Tensor in = x.detach().to(accumulate_dtype(x.dtype())).contiguous();
  Tensor y(x.shape(), DType::u8, x.device());
  ON_DEVICE(x, unit_to_u8(in, y));
  return y;
}

Tensor rgb_to_ycbcr(const Tensor& x) {
  const double r = 0.299, g = 0.587, b = 0.114, u = 1 / 1.772, v = 1 / 1.402;
  return apply_color_map(
      "rgb_to_ycbcr", x,
      {{r, g, b, -r * u, -g * u, (1 - b) * u, (1 - r) * v, -g * v, -b * v}, {0, 0.5, 0.5}});
}

Tensor ycbcr_to_rgb(const Tensor& x) {
  const double g_cb = -0.114 * 1.772 / 0.587, g_cr = -0.299 * 1.402 / 0.587;
  return apply_color_map("ycbcr_to_rgb", x,
                         {{1, 0, 1.402, 1, g_cb, g_cr, 1, 1.772, 0}, {-0.701, -0.5 * (g_cb + g_cr), -0.886}});
}

Tensor rgb_to_hsv(const Tensor& x) {
  return without_gradient("rgb_to_hsv", x,
                          [](const Tensor& in, Tensor& y) { ON_DEVICE(in, rgb_to_hsv(in, y)); });
}

Tensor hsv_to_rgb(const Tensor& x) {
  return without_gradient("hsv_to_rgb", x,
                          [](const Tensor& in, Tensor& y) { ON_DEVICE(in, hsv_to_rgb(in, y)); });
}

namespace {

// 5 x 4 or smaller grows, anything else shrinks to about a third.
Tensor resize_for_case(const Tensor& x) {
  const int64_t h = x.dim(1), w = x.dim(2);
  return h * w <= 20 ? resize(x, 2 * h + 1, w + 3) : resize(x, h / 3, (w + 1) / 3);
}

OpCase pixel_case(const char* name, Tensor (*op)(const Tensor&), bool differentiable, double bytes_per_value,
                  double flops_per_value) {
  return {
      .name = name,
      .run = [op](const Tensors& in) -> Tensors { return {op(in[0])}; },
      .check = {{{2, 3, 5, 3}}, {{3}}, {{1, 1, 1, 3}}},
      .bench = {{{24, 144, 256, 3}}, {{24, 704, 1280, 3}}},
      .bytes = [=](const Shapes& s) { return bytes_per_value * double(s[0].numel()); },
      .flops = [=](const Shapes& s) { return flops_per_value * double(s[0].numel()); },
      .fill = [](const Shape& shape, int, Rng& rng,
                 DType dtype) { return rand_uniform(shape, 0, 1, rng, dtype); },
      .differentiable = {differentiable},
  };
}

}  // namespace

const OpCase& resize_case() {
  static const OpCase kCase = {
      .name = "resize",
      .run = [](const Tensors& in) -> Tensors { return {resize_for_case(in[0])}; },
      .check = {{{2, 7, 9, 2}}, {{1, 1, 1, 1}}, {{1, 5, 4, 3}}},
      .bench = {{{24, 432, 768, 3}}, {{24, 704, 1280, 3}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) * 10 / 9; },
      // Two taps per pixel of the image in each direction, the second on a third of the lines.
      .flops = [](const Shapes& s) { return 4.0 * double(s[0].numel()) * (1 + 1.0 / 3); },
  };
  return kCase;
}

const OpCase& crop_case() {
  static const OpCase kCase = {
      .name = "crop",
      .run = [](const Tensors& in) -> Tensors {
        const int64_t h = in[0].dim(1), w = in[0].dim(2);
        return {crop(in[0], h / 3, w / 4, (h + 1) / 2, (w + 1) / 2).contiguous()};
      },
      .check = {{{2, 7, 5, 3}}, {{1, 1, 1, 1}}, {{1, 4, 6, 2}}},
      .bench = {{{24, 288, 512, 3}}, {{24, 1408, 2560, 3}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) / 2; },
      .flops = [](const Shapes&) { return 0.0; },
  };
  return kCase;
}

const OpCase& rgb_to_ycbcr_case() {
  static const OpCase kCase = pixel_case("rgb_to_ycbcr", rgb_to_ycbcr, true, 8, 6);
  return kCase;
}
const OpCase& ycbcr_to_rgb_case() {
  static const OpCase kCase = pixel_case("ycbcr_to_rgb", ycbcr_to_rgb, true, 8, 6);
  return kCase;
}
const OpCase& rgb_to_hsv_case() {
  static const OpCase kCase = pixel_case("rgb_to_hsv", rgb_to_hsv, false, 8, 4);
  return kCase;
}
const OpCase& hsv_to_rgb_case() {
  static const OpCase kCase = pixel_case("hsv_to_rgb", hsv_to_rgb, false, 8, 8);
  return kCase;
}
const OpCase& u8_to_unit_case() {
  static const OpCase kCase = [] {
    OpCase c = pixel_case("u8_to_unit", u8_to_unit, false, 5, 1);
    c.fill = [](const Shape& shape, int, Rng& rng, DType) {
      return rand_uniform(shape, 0, 256, rng).to(DType::u8);
    };
    return c;
  }();
  return kCase;
}
const OpCase& unit_to_u8_case() {
  static const OpCase kCase = pixel_case("unit_to_u8", unit_to_u8, false, 5, 2);
  return kCase;
}

}  // namespace rivulet
