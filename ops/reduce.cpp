#include "ops/reduce.h"

#include "ops/elementwise.h"
#include "ops/fast_math.h"
#include "ops/half.h"
#include "ops/rows.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace cpu {
namespace {

// The largest of n values; NaN if there is one.
template <class T>
T max_of(const T* x, int64_t n) {
  T top = x[0];
  int nan = 0;
#pragma omp simd reduction(max : top) reduction(+ : nan)
  for (int64_t i = 0; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
    nan += x[i] != x[i];
  }
  return nan ? std::numeric_limits<T>::quiet_NaN() : top;
}

// y = e^(x - top), returns its sum. A row of -inf alone is shifted by 0, so it sums to 0, not to NaN.
template <class T>
T shifted_exp(const T* x, T top, T* y, int64_t n) {
  const T shift = top == -std::numeric_limits<T>::infinity() ? T(0) : top;
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) {
    const T e = fast_exp(x[i] - shift);
    if (y) y[i] = e;
    total += e;
  }
  return total;
}

}  // namespace

void row_max(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "max", [&]<class T>() {
    const int64_t c = x.dim(-1);
    for_rows(x, [&](int64_t r) { y.data<T>()[r] = max_of(x.data<T>() + r * c, c); });
  });
}

void max_backward(const Tensor& g, const Tensor& x, const Tensor& y, Tensor& dx) {
  dispatch_real(x.dtype(), "max", [&]<class T>() {
    const int64_t c = x.dim(-1);
    for_rows(x, [&](int64_t r) {
      const T *in = x.data<T>() + r * c, top = y.data<T>()[r];
      T* out = dx.data<T>() + r * c;
      int64_t ties = 0;
      for (int64_t i = 0; i < c; ++i) ties += in[i] == top;
      const T share = g.data<T>()[r] / T(ties);
      for (int64_t i = 0; i < c; ++i) out[i] = in[i] == top ? share : T(0);
    });
  });
}

void softmax(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "softmax", [&]<class T>() {
    const int64_t c = x.dim(-1);
    for_rows(x, [&](int64_t r) {
      const T* in = x.data<T>() + r * c;
      T* out = y.data<T>() + r * c;
      const T scale = T(1) / shifted_exp(in, max_of(in, c), out, c);
      for (int64_t i = 0; i < c; ++i) out[i] *= scale;
    });
  });
}

void softmax_backward(const Tensor& g, const Tensor& y, Tensor& dx) {
  dispatch_real(y.dtype(), "softmax", [&]<class T>() {
    const int64_t c = y.dim(-1);
    for_rows(y, [&](int64_t r) {
      const T *up = g.data<T>() + r * c, *p = y.data<T>() + r * c;
      T *out = dx.data<T>() + r * c, dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < c; ++i) dot += up[i] * p[i];
      for (int64_t i = 0; i < c; ++i) out[i] = p[i] * (up[i] - dot);
    });
  });
}

void logsumexp(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "logsumexp", [&]<class T>() {
    const int64_t c = x.dim(-1);
    for_rows(x, [&](int64_t r) {
      const T *in = x.data<T>() + r * c, top = max_of(in, c);
      const bool empty = top == -std::numeric_limits<T>::infinity();
      y.data<T>()[r] = empty ? top : top + std::log(shifted_exp<T>(in, top, nullptr, c));
    });
  });
}

void logsumexp_backward(const Tensor& g, const Tensor& x, const Tensor& y, Tensor& dx) {
  dispatch_real(x.dtype(), "logsumexp", [&]<class T>() {
    const int64_t c = x.dim(-1);
    for_rows(x, [&](int64_t r) {
      const T *in = x.data<T>() + r * c, up = g.data<T>()[r], lse = y.data<T>()[r];
      T* out = dx.data<T>() + r * c;
#pragma omp simd
      for (int64_t i = 0; i < c; ++i) out[i] = up * fast_exp(in[i] - lse);
    });
  });
}

}  // namespace cpu

namespace {

std::vector<int> all_dims(const Tensor& x) {
  std::vector<int> dims(size_t(x.dims()));
  for (int i = 0; i < x.dims(); ++i) dims[size_t(i)] = i;
  return dims;
}

// x's shape with the named dims as 1, and without them.
struct Reduced {
  Shape with_ones, without;
  int64_t count = 1;  // elements per result
  Shape order;        // kept dims, then the others
};

Reduced reduced(const char* who, const Tensor& x, const std::vector<int>& dims) {
  bool gone[kMaxDims] = {};
  for (int d : dims) {
    const int i = wrap_dim(d, x.dims(), who);
    check(!gone[i], who, ": dim ", d, " named twice for shape ", x.shape());
    gone[i] = true;
  }
  Reduced r;
  for (int i = 0; i < x.dims(); ++i) {
    const int64_t n = x.shape()[i];
    r.with_ones.push_back(gone[i] ? 1 : n);
    if (gone[i]) {
      r.count *= n;
    } else {
      r.without.push_back(n);
      r.order.push_back(i);
    }
  }
  for (int i = 0; i < x.dims(); ++i)
    if (gone[i]) r.order.push_back(i);
  return r;
}

void check_rows(const char* who, const Tensor& x) {
  check_same_type(who, {x});
  check(x.dims() >= 1 && x.dim(-1) > 0, who, ": x has shape ", x.shape());
}

}  // namespace

Tensor sum(const Tensor& x, const std::vector<int>& dims, bool keepdim) {
  check_same_type("sum", {x});
  const Reduced r = reduced("sum", x, dims);
  const Tensor y = sum_to(x.detach(), r.with_ones).reshape(keepdim ? r.with_ones : r.without);
  return record("sum", y, {x}, [ones = r.with_ones, shape = x.shape()](const Tensor& dy) -> Tensors {
    return {dy.reshape(ones).expand(shape)};
  });
}

Tensor mean(const Tensor& x, const std::vector<int>& dims, bool keepdim) {
  if (needs_f32(x)) return mean(x.to(DType::f32), dims, keepdim).to(x.dtype());
  const int64_t count = reduced("mean", x, dims).count;
  check(count > 0, "mean: nothing to average in shape ", x.shape());
  return sum(x, dims, keepdim) * (1.0 / double(count));
}

Tensor max(const Tensor& x, const std::vector<int>& dims, bool keepdim) {
  check_same_type("max", {x});
  if (needs_f32(x)) return max(x.to(DType::f32), dims, keepdim).to(x.dtype());
  const Reduced r = reduced("max", x, dims);
  check(r.count > 0, "max: of no elements, in shape ", x.shape());
  if (r.count == 1) return x.reshape(keepdim ? r.with_ones : r.without);
  const Tensor rows = x.detach().permute(r.order).contiguous().reshape({r.without.numel(), r.count});
  Tensor y({r.without.numel()}, x.dtype(), x.device());
  ON_DEVICE(x, row_max(rows, y));
  const Tensor out = y.reshape(keepdim ? r.with_ones : r.without);
  Shape back = r.order, moved = r.order;
  for (int i = 0; i < back.size(); ++i) {
    back[int(r.order[i])] = i;
    moved[i] = x.shape()[int(r.order[i])];
  }
  return record("max", out, {x}, [=](const Tensor& dy) -> Tensors {
    const Tensor g = dy.contiguous().reshape({y.numel()});
    Tensor dx = empty_like(rows);
    ON_DEVICE(g, max_backward(g, rows, y, dx));
    return {dx.reshape(moved).permute(back)};
  });
}

Tensor sum(const Tensor& x) { return sum(x, all_dims(x)); }
Tensor mean(const Tensor& x) { return mean(x, all_dims(x)); }
Tensor max(const Tensor& x) { return max(x, all_dims(x)); }

Tensor softmax(const Tensor& x) {
  check_rows("softmax", x);
  // Gradients are made of the result: one rounded to a half would spoil them.
  if (is_half(x.dtype())) return softmax(x.to(DType::f32)).to(x.dtype());
  const Tensor in = x.detach().contiguous();
  Tensor y = empty_like(x);
  ON_DEVICE(x, softmax(in, y));
  return record("softmax", y, {x}, [y](const Tensor& dy) -> Tensors {
    const Tensor g = dy.contiguous();
    Tensor dx = empty_like(y);
    ON_DEVICE(y, softmax_backward(g, y, dx));
    return {dx};
  });
}

Tensor logsumexp(const Tensor& x, bool keepdim) {
  check_rows("logsumexp", x);
  if (is_half(x.dtype())) return logsumexp(x.to(DType::f32), keepdim).to(x.dtype());
  const Tensor in = x.detach().contiguous();
  const Reduced r = reduced("logsumexp", x, {-1});
  Tensor y(keepdim ? r.with_ones : r.without, x.dtype(), x.device());
  ON_DEVICE(x, logsumexp(in, y));
  return record("logsumexp", y, {x}, [=](const Tensor& dy) -> Tensors {
    const Tensor g = dy.contiguous();
    Tensor dx = empty_like(in);
    ON_DEVICE(g, logsumexp_backward(g, in, y, dx));
    return {dx};
  });
}

// --- Cases -------------------------------------------------------------------------------------------

namespace {

// Results of several kinds of reduced dims, so that each path of the sum is checked.
template <class Op>
OpCase reduce_case(const char* name, Op op) {
  return {.name = name,
          .run = [op](const Tensors& in) -> Tensors {
            const Tensor& x = in[0];
            return {op(x, std::vector<int>{-1}, false), op(x, std::vector<int>{0}, true),
                    op(x, x.dims() > 2 ? std::vector<int>{0, 2} : std::vector<int>{}, false)};
          },
          .check = {{{3, 7}}, {{1}}, {{2, 3, 5}}, {{2, 3, 4, 2}}},
          .bench = {{{1728, 768}}},
          .bytes = [](const Shapes& s) { return 2 * bytes_of(s); },
          .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel()); }};
}

OpCase row_case(const char* name, Tensor (*op)(const Tensor&), double passes) {
  return {.name = name,
          .run = [op](const Tensors& in) -> Tensors { return {op(in[0])}; },
          .check = {{{3, 7}}, {{1}}, {{2, 3, 16}}, {{2, 70}}},
          .bench = {{{1728, 768}}, {{65536, 64}}},
          .bytes = [passes](const Shapes& s) { return passes * bytes_of(s); },
          .flops = [](const Shapes& s) { return 4.0 * double(s[0].numel()); }};
}

using ReduceDims = Tensor (*)(const Tensor&, const std::vector<int>&, bool);

}  // namespace

const OpCase& sum_case() {
  static const OpCase the_case = reduce_case("sum", ReduceDims(sum));
  return the_case;
}
const OpCase& mean_case() {
  static const OpCase the_case = reduce_case("mean", ReduceDims(mean));
  return the_case;
}
const OpCase& max_case() {
  static const OpCase the_case = reduce_case("max", ReduceDims(max));
  return the_case;
}
const OpCase& softmax_case() {
  static const OpCase the_case = row_case("softmax", softmax, 2);
  return the_case;
}
const OpCase& logsumexp_case() {
  static const OpCase the_case = row_case(
      "logsumexp", [](const Tensor& x) { return logsumexp(x); }, 1);
  return the_case;
}

}  // namespace rivulet
