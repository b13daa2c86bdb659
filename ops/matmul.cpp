#include "ops/matmul.h"

#include "ops/elementwise.h"
#include "ops/gemm.h"
#include "ops/half.h"
#include "tensor/autograd.h"
#include "tensor/parallel.h"
#include "tensor/strided.h"

namespace rivulet {
namespace cpu {
namespace {

// The last two dims of a tensor as gemm wants them: rows of `ld`, or their transpose.
struct Layout {
  bool transposed = false, readable = true;
  int64_t ld = 1;
};

Layout layout_of(const Tensor& x) {
  const int64_t rows = x.dim(-2), cols = x.dim(-1);
  const int64_t row_step = x.strides()[x.dims() - 2], col_step = x.strides()[x.dims() - 1];
  if (cols == 1 || col_step == 1) return {false, true, rows == 1 ? std::max<int64_t>(cols, 1) : row_step};
  if (rows == 1 || row_step == 1) return {true, true, col_step};
  return {false, false, 0};
}

// x itself when gemm can read it, otherwise a dense copy.
Tensor readable(const Tensor& x) { return layout_of(x).readable ? x : x.contiguous(); }

}  // namespace

void matmul(const Tensor& a_any, const Tensor& b_any, Tensor& y) {
  const Tensor a = readable(a_any), b = readable(b_any);
  const Layout la = layout_of(a), lb = layout_of(b);
  const int64_t m = y.dim(-2), n = y.dim(-1), k = a.dim(-1);
  const auto batch_dims = [](const Shape& s) { return Shape(std::span(s.begin(), size_t(s.size() - 2))); };
  const Shape batch = batch_dims(y.shape());
  const Shape step_a = broadcast_strides(batch_dims(a.shape()), batch_dims(a.strides()), batch);
  const Shape step_b = broadcast_strides(batch_dims(b.shape()), batch_dims(b.strides()), batch);
  const int64_t count = batch.numel();
  // One large product shares out its own tiles; many are shared out whole. The bits are the same.
  const bool split_batch = count >= 2 * num_threads() || m * n * k < 64 * 64 * 64;
  dispatch_real(y.dtype(), "matmul", [&]<class T>() {
    const int64_t grain = std::max<int64_t>(1, 64 * 64 * 64 / std::max<int64_t>(1, m * n * k));
    parallel_for(count, split_batch ? grain : count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t rest = i, at_a = 0, at_b = 0;
        for (int d = batch.size() - 1; d >= 0; --d) {
          at_a += rest % batch[d] * step_a[d];
          at_b += rest % batch[d] * step_b[d];
          rest /= batch[d];
        }
        gemm<T>(la.transposed, lb.transposed, m, n, k, T(1), a.data<T>() + at_a, la.ld, b.data<T>() + at_b,
                lb.ld, T(0), y.data<T>() + i * m * n, n, !split_batch);
      }
    });
  });
}

namespace {
void activated_linear(const Tensor& x_any, const Tensor& w_any, const Tensor& bias, Activation f, Tensor& y) {
  const Tensor x = readable(x_any), w = readable(w_any);
  const Layout lx = layout_of(x), lw = layout_of(w);
  dispatch_real(y.dtype(), "linear", [&]<class T>() {
    gemm_bias<T>(lx.transposed, !lw.transposed, y.dim(0), y.dim(1), x.dim(1), T(1), x.data<T>(), lx.ld,
                 w.data<T>(), lw.ld, bias ? bias.data<T>() : nullptr, y.data<T>(), y.dim(1), f);
  });
}
}  // namespace

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y) {
  activated_linear(x, w, bias, Activation::none, y);
}
void linear_silu(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y) {
  activated_linear(x, w, bias, Activation::silu, y);
}
void linear_add(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& addend, Tensor& y) {
  linear(x, w, bias, y);
  y.add_in_place(addend);
}

}  // namespace cpu

namespace {

// x [..., K] as [rows, K]: a view when one row stride serves, otherwise of a dense copy.
Tensor as_rows(const Tensor& x) {
  return x.detach().reshape({x.numel() / std::max<int64_t>(1, x.dim(-1)), x.dim(-1)});
}

// Without the tape.
Tensor product(const Tensor& a, const Tensor& b) {
  Shape shape = broadcast_shapes(Shape(std::span(a.shape().begin(), size_t(a.dims() - 2))),
                                 Shape(std::span(b.shape().begin(), size_t(b.dims() - 2))), "matmul");
  shape.push_back(a.dim(-2));
  shape.push_back(b.dim(-1));
  Tensor y(shape, a.dtype(), a.device());
  ON_DEVICE(y, matmul(a, b, y));
  return y;
}

// The whole batch of `a` against one matrix is one product of more rows.
bool folds(const Tensor& a, const Tensor& b) {
  return a.dims() > 2 && b.dims() == 2 && a.strides()[a.dims() - 1] == 1 && a.numel() > 0;
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  if (needs_f32({a, b})) return through_f32({a, b}, [](const Tensors& t) { return matmul(t[0], t[1]); });
  check_same_type("matmul", {a, b});
  check(a.dims() >= 2 && b.dims() >= 2 && a.dim(-1) == b.dim(-2), "matmul: shapes ", a.shape(), " and ",
        b.shape());
  const bool fold = folds(a, b);
  Tensor y = fold ? product(as_rows(a), b.detach()) : product(a.detach(), b.detach());
  if (fold) {
    Shape shape = a.shape();
    shape[shape.size() - 1] = b.dim(-1);
    y = y.reshape(shape);
  }
  const bool need_a = a.requires_grad(), need_b = b.requires_grad();
  return record("matmul", y, {a, b}, [=, a = a.detach(), b = b.detach()](const Tensor& g) -> Tensors {
    if (fold) {
      const Tensor rows = as_rows(g);
      return {need_a ? product(rows, b.transpose(0, 1)).reshape(a.shape()) : Tensor(),
              need_b ? product(as_rows(a).transpose(0, 1), rows) : Tensor()};
    }
    return {need_a ? sum_to(product(g, b.transpose(-1, -2)), a.shape()) : Tensor(),
            need_b ? sum_to(product(a.transpose(-1, -2), g), b.shape()) : Tensor()};
  });
}

namespace {
void check_linear(const Tensor& x, const Tensor& w, const Tensor& bias) {
  check_same_type("linear", {x, w, bias});
  check(x.dims() >= 1 && w.dims() == 2 && x.dim(-1) == w.dim(1), "linear: x has shape ", x.shape(), ", w ",
        w.shape());
  check(!bias || (bias.dims() == 1 && bias.dim(0) == w.dim(0)), "linear: bias has shape ",
        bias ? bias.shape() : Shape{}, ", w ", w.shape());
}
}  // namespace

Tensor linear_silu(const Tensor& x, const Tensor& w, const Tensor& bias) {
  if (needs_f32({x, w, bias}))
    return through_f32({x, w, bias}, [](const Tensors& t) { return linear_silu(t[0], t[1], t[2]); });
  // The gradient of silu needs what goes into it, which one sweep does not keep.
  if (x.device() != Device::cpu || will_record({x, w, bias})) return silu(linear(x, w, bias));
  check_linear(x, w, bias);
  Shape shape = x.shape();
  shape[shape.size() - 1] = w.dim(0);
  Tensor y(shape, x.dtype()), rows = y.reshape({-1, w.dim(0)});
  cpu::linear_silu(as_rows(x), w.detach(), bias ? bias.detach().contiguous() : bias, rows);
  return y;
}

namespace {
// linear and linear_add, by whether there is an addend.
Tensor product_and_sum(const char* who, const Tensor& x, const Tensor& w, const Tensor& bias,
                       const Tensor& addend) {
  check_linear(x, w, bias);
  Shape shape = x.shape();
  shape[shape.size() - 1] = w.dim(0);
  check(!addend || addend.shape() == shape, who, ": addend has shape ", addend ? addend.shape() : Shape{},
        ", the product ", shape);
  const Tensor rows = as_rows(x), dense_bias = bias ? bias.detach().contiguous() : Tensor();
  Tensor y({rows.dim(0), w.dim(0)}, x.dtype(), x.device());
  if (addend)
    ON_DEVICE(y, linear_add(rows, w.detach(), dense_bias, as_rows(addend.detach().contiguous()), y));
  else
    ON_DEVICE(y, linear(rows, w.detach(), dense_bias, y));
  Tensors inputs = {x, w};
  if (bias) inputs.push_back(bias);
  if (addend) inputs.push_back(addend);
  const bool need_x = x.requires_grad(), need_w = w.requires_grad(), need_b = bias && bias.requires_grad();
  return record(who, y.reshape(shape), inputs,
                [=, w = w.detach(), x_shape = x.shape(), has_bias = bool(bias),
                 has_addend = bool(addend)](const Tensor& dy) -> Tensors {
                  const Tensor g = as_rows(dy);
                  Tensors grads = {need_x ? product(g, w).reshape(x_shape) : Tensor(),
                                   need_w ? product(g.transpose(0, 1), rows) : Tensor()};
                  if (has_bias)
                    grads.push_back(need_b ? sum_to(g, {1, g.dim(1)}).reshape({g.dim(1)}) : Tensor());
                  if (has_addend) grads.push_back(dy);
                  return grads;
                });
}
}  // namespace

Tensor linear(const Tensor& x, const Tensor& w, const Tensor& bias) {
  if (needs_f32({x, w, bias}))
    return through_f32({x, w, bias}, [](const Tensors& t) { return linear(t[0], t[1], t[2]); });
  return product_and_sum("linear", x, w, bias, {});
}

Tensor linear_add(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& addend) {
  if (needs_f32({x, w, bias, addend}))
    return through_f32({x, w, bias, addend},
                       [](const Tensors& t) { return linear_add(t[0], t[1], t[2], t[3]); });
  check_same_type("linear_add", {x, w, bias, addend});
  return product_and_sum("linear_add", x, w, bias, addend);
}

// --- Cases -------------------------------------------------------------------------------------------

const OpCase& matmul_case() {
  static const OpCase the_case = {
      .name = "matmul",
      .run = [](const Tensors& in) -> Tensors { return {matmul(in[0], in[1])}; },
      .check = {{{3, 5}, {5, 4}},
                {{1, 1}, {1, 1}},
                {{2, 3, 4}, {4, 5}},
                {{2, 1, 3, 4}, {3, 4, 2}},
                {{4, 2}, {3, 2, 5}}},
      .bench = {{{1728, 768}, {768, 768}},
                {{12, 864, 64}, {12, 64, 864}},
                {{512, 512}, {512, 512}},
                {{1024, 1024}, {1024, 1024}},
                {{2048, 2048}, {2048, 2048}}},
      .bytes =
          [](const Shapes& s) {
            return bytes_of(s) + 4.0 * double(s[0].numel() / s[0][s[0].size() - 1] * s[1][s[1].size() - 1]);
          },
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel() * s[1][s[1].size() - 1]); }};
  return the_case;
}

const OpCase& linear_case() {
  static const OpCase the_case = {
      .name = "linear",
      .run = [](const Tensors& in) -> Tensors {
        return {linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor())};
      },
      .check = {{{3, 5}, {4, 5}, {4}}, {{1}, {1, 1}}, {{2, 3, 4}, {7, 4}, {7}}, {{18, 9}, {35, 9}}},
      .bench = {{{1728, 128}, {384, 128}, {384}},
                {{1728, 768}, {768, 768}, {768}},
                {{1, 768}, {4608, 768}, {4608}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + 4.0 * double(s[0].numel() / s[1][1] * s[1][0]); },
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel() * s[1][0]); }};
  return the_case;
}

const OpCase& linear_silu_case() {
  static const OpCase the_case = {
      .name = "linear_silu",
      .run = [](const Tensors& in) -> Tensors {
        return {linear_silu(in[0], in[1], in.size() > 2 ? in[2] : Tensor())};
      },
      .check = {{{3, 5}, {4, 5}, {4}}, {{1}, {1, 1}}, {{2, 3, 4}, {7, 4}, {7}}, {{18, 9}, {35, 9}}},
      .bench = {{{1728, 128}, {768, 128}, {768}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + 4.0 * double(s[0].numel() / s[1][1] * s[1][0]); },
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel() * s[1][0]); }};
  return the_case;
}

const OpCase& linear_add_case() {
  static const OpCase the_case = {
      .name = "linear_add",
      .run = [](const Tensors& in) -> Tensors { return {linear_add(in[0], in[1], in[2], in[3])}; },
      .check = {{{3, 5}, {4, 5}, {4}, {3, 4}}, {{1}, {1, 1}, {1}, {1}}, {{2, 3, 4}, {7, 4}, {7}, {2, 3, 7}}},
      .bench = {{{1728, 128}, {384, 128}, {384}, {1728, 384}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + 4.0 * double(s[0].numel() / s[1][1] * s[1][0]); },
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel() * s[1][0]); }};
  return the_case;
}

}  // namespace rivulet
