#include "ops/norm.h"

#include "ops/half.h"
#include "ops/norm_rows.h"
#include "ops/rows.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace cpu {
namespace {

template <class T>
const T* data_or_null(const Tensor& t) {
  return t ? t.data<T>() : nullptr;
}

}  // namespace

void rms_norm(const Tensor& x, const Tensor& w, double eps, double offset, Tensor& y, Tensor& r) {
  dispatch_real(x.dtype(), "rms_norm", [&]<class T>() {
    const int64_t c = x.dim(-1);
    const T* scale = data_or_null<T>(w);
    for_rows(x, [&](int64_t row) {
      const T* in = x.data<T>() + row * c;
      T *out = y.data<T>() + row * c, squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t j = 0; j < c; ++j) squares += in[j] * in[j];
      const T rms = T(1) / std::sqrt(squares / T(c) + T(eps));
      r.data<T>()[row] = rms;
      if (scale) {
        for (int64_t j = 0; j < c; ++j) out[j] = in[j] * rms * (scale[j] + T(offset));
      } else {
        for (int64_t j = 0; j < c; ++j) out[j] = in[j] * rms;
      }
    });
  });
}

void rms_norm_backward(const Tensor& g, const Tensor& x, const Tensor& w, double offset, const Tensor& r,
                       Tensor& dx, Tensor& dw) {
  dispatch_real(x.dtype(), "rms_norm", [&]<class T>() {
    const int64_t c = x.dim(-1);
    const T* scale = data_or_null<T>(w);
    const auto weight = [=](int64_t j) { return scale ? scale[j] + T(offset) : T(1); };
    for_rows(x, [&](int64_t row) {
      const T *in = x.data<T>() + row * c, *up = g.data<T>() + row * c, rms = r.data<T>()[row];
      T *out = dx.data<T>() + row * c, dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < c; ++j) dot += up[j] * weight(j) * in[j];
      const T pull = rms * rms * rms * dot / T(c);
      for (int64_t j = 0; j < c; ++j) out[j] = rms * up[j] * weight(j) - in[j] * pull;
    });
    if (!dw) return;
    sum_over_rows(1, x.numel() / c, c, dw.data<T>(), [&](int64_t begin, int64_t end, int64_t, T* sums) {
      for (int64_t row = begin; row < end; ++row) {
        const T *in = x.data<T>() + row * c, *up = g.data<T>() + row * c, rms = r.data<T>()[row];
        for (int64_t j = 0; j < c; ++j) sums[j] += up[j] * in[j] * rms;
      }
    });
  });
}

void layer_norm(const Tensor& x, const Tensor& w, const Tensor& b, double eps, Tensor& y, Tensor& mean,
                Tensor& r) {
  dispatch_real(x.dtype(), "layer_norm", [&]<class T>() {
    const int64_t c = x.dim(-1);
    const T *scale = data_or_null<T>(w), *shift = data_or_null<T>(b);
    for_rows(x, [&](int64_t row) {
      const T* in = x.data<T>() + row * c;
      T* out = y.data<T>() + row * c;
      const auto [mu, rstd] = row_moments(in, c, T(eps));
      mean.data<T>()[row] = mu;
      r.data<T>()[row] = rstd;
      for (int64_t j = 0; j < c; ++j) {
        const T h = (in[j] - mu) * rstd;
        out[j] = (scale ? h * scale[j] : h) + (shift ? shift[j] : T(0));
      }
    });
  });
}

void layer_norm_backward(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& mean,
                         const Tensor& r, Tensor& dx, Tensor& dw, Tensor& db) {
  dispatch_real(x.dtype(), "layer_norm", [&]<class T>() {
    const int64_t c = x.dim(-1);
    const T* scale = data_or_null<T>(w);
    for_rows(x, [&](int64_t row) {
      layer_norm_row_backward(
          c, g.data<T>() + row * c, x.data<T>() + row * c, mean.data<T>()[row], r.data<T>()[row],
          [scale](int64_t j) { return scale ? scale[j] : T(1); }, dx.data<T>() + row * c);
    });
    if (!dw && !db) return;
    Tensor both({2, c}, x.dtype(), x.device());
    sum_over_rows(1, x.numel() / c, 2 * c, both.data<T>(), [&](int64_t begin, int64_t end, int64_t, T* sums) {
      for (int64_t row = begin; row < end; ++row) {
        const T *in = x.data<T>() + row * c, *up = g.data<T>() + row * c;
        const T mu = mean.data<T>()[row], rstd = r.data<T>()[row];
        for (int64_t j = 0; j < c; ++j) {
          sums[j] += up[j] * (in[j] - mu) * rstd;
          sums[c + j] += up[j];
        }
      }
    });
    if (dw) dw.copy_from(both.select(0, 0));
    if (db) db.copy_from(both.select(0, 1));
  });
}

}  // namespace cpu

namespace {

// Throws unless x has channels and each given weight is [C]; gives the shape of one value per row.
Shape check_norm(const char* who, const Tensor& x, const Tensors& weights) {
  check(x.dims() >= 1 && x.dim(-1) > 0, who, ": x has shape ", x.shape());
  for (const Tensor& w : weights)
    check(!w || (w.dims() == 1 && w.dim(0) == x.dim(-1)), who, ": weight has shape ", w ? w.shape() : Shape{},
          ", x ", x.shape());
  return {x.numel() / x.dim(-1)};
}

Tensor dense(const Tensor& x) { return x ? x.detach().contiguous() : Tensor(); }

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& w, double eps, double offset) {
  if (needs_f32({x, w}))
    return through_f32({x, w}, [=](const Tensors& t) { return rms_norm(t[0], t[1], eps, offset); });
  check_same_type("rms_norm", {x, w});
  const Shape per_row = check_norm("rms_norm", x, {w});
  const Tensor in = dense(x), scale = dense(w);
  Tensor y = empty_like(x), r(per_row, accumulate_dtype(x.dtype()), x.device());
  ON_DEVICE(x, rms_norm(in, scale, eps, offset, y, r));
  const bool need_w = w && w.requires_grad();
  return record("rms_norm", y, w ? Tensors{x, w} : Tensors{x}, [=](const Tensor& dy) -> Tensors {
    const Tensor g = dy.contiguous();
    Tensor dx = empty_like(in), dw = need_w ? empty_like(scale) : Tensor();
    ON_DEVICE(in, rms_norm_backward(g, in, scale, offset, r, dx, dw));
    return scale ? Tensors{dx, dw} : Tensors{dx};
  });
}

Tensor layer_norm(const Tensor& x, const Tensor& w, const Tensor& b, double eps) {
  if (needs_f32({x, w, b}))
    return through_f32({x, w, b}, [eps](const Tensors& t) { return layer_norm(t[0], t[1], t[2], eps); });
  check_same_type("layer_norm", {x, w, b});
  const Shape per_row = check_norm("layer_norm", x, {w, b});
  const Tensor in = dense(x), scale = dense(w), shift = dense(b);
  Tensor y = empty_like(x), mean(per_row, accumulate_dtype(x.dtype()), x.device()),
         r(per_row, accumulate_dtype(x.dtype()), x.device());
  ON_DEVICE(x, layer_norm(in, scale, shift, eps, y, mean, r));
  Tensors inputs = {x};
  if (w) inputs.push_back(w);
  if (b) inputs.push_back(b);
  const bool need_w = w && w.requires_grad(), need_b = b && b.requires_grad();
  return record("layer_norm", y, inputs, [=, has_b = bool(b)](const Tensor& dy) -> Tensors {
    const Tensor g = dy.contiguous();
    const Shape channels = {in.dim(-1)};
    Tensor dx = empty_like(in), dw, db;
    if (need_w) dw = Tensor(channels, in.dtype(), in.device());
    if (need_b) db = Tensor(channels, in.dtype(), in.device());
    ON_DEVICE(in, layer_norm_backward(g, in, scale, mean, r, dx, dw, db));
    Tensors grads = {dx};
    if (scale) grads.push_back(dw);
    if (has_b) grads.push_back(db);
    return grads;
  });
}

// --- Cases -------------------------------------------------------------------------------------------

const OpCase& rms_norm_case() {
  static const OpCase the_case = {
      .name = "rms_norm",
      .run = [](const Tensors& in) -> Tensors { return {rms_norm(in[0], in.size() > 1 ? in[1] : Tensor())}; },
      .check = {{{3, 5, 8}, {8}}, {{1, 1}, {1}}, {{2, 70}}, {{130, 3}, {3}}},
      .bench = {{{1728, 768}, {768}}, {{2640, 2240}, {2240}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 4.0 * double(s[0].numel()); }};
  return the_case;
}

const OpCase& rms_norm_offset_case() {
  static const OpCase the_case = {
      .name = "rms_norm_offset",
      .run = [](const Tensors& in) -> Tensors { return {rms_norm(in[0], in[1], 1e-6, 1)}; },
      .check = {{{3, 5, 8}, {8}}, {{1, 1}, {1}}, {{3, 70}, {70}}},
      .bench = {{{407, 2304}, {2304}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 5.0 * double(s[0].numel()); }};
  return the_case;
}

const OpCase& layer_norm_case() {
  static const OpCase the_case = {
      .name = "layer_norm",
      .run = [](const Tensors& in) -> Tensors {
        return {layer_norm(in[0], in.size() > 1 ? in[1] : Tensor(), in.size() > 2 ? in[2] : Tensor())};
      },
      .check = {{{3, 5, 8}, {8}, {8}}, {{2, 1}, {1}, {1}}, {{2, 70}}, {{130, 3}, {3}, {3}}},
      .bench = {{{1728, 768}, {768}, {768}}, {{1728, 768}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 7.0 * double(s[0].numel()); }};
  return the_case;
}

}  // namespace rivulet
