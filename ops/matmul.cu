#include "ops/matmul.h"

#include "ops/gemm.cuh"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// The last two dims of a tensor as gemm wants them: rows of `ld`, or their transpose.
struct Layout {
  bool transposed = false, readable = true;
  int64_t ld = 1;
};

Layout layout_of(const Tensor& x) {
  const int64_t rows = x.dim(-2), cols = x.dim(-1);
  const int64_t row_step = x.strides()[x.dims() - 2], col_step = x.strides()[x.dims() - 1];
  const int64_t row_ld = rows == 1 ? cols : row_step, col_ld = cols == 1 ? rows : col_step;
  if ((cols == 1 || col_step == 1) && row_ld >= cols) return {false, true, row_ld};
  if ((rows == 1 || row_step == 1) && col_ld >= rows) return {true, true, col_ld};
  return {false, false, 0};
}

// x itself when gemm can read it, otherwise a dense copy.
Tensor readable(const Tensor& x) { return layout_of(x).readable ? x : x.contiguous(); }

Shape batch_dims(const Shape& s) { return Shape(std::span(s.begin(), size_t(s.size() - 2))); }

const void* shifted(const Tensor& x, int64_t elements) {
  return static_cast<const char*>(x.raw()) + elements * size_of(x.dtype());
}

}  // namespace

void matmul(const Tensor& a_any, const Tensor& b_any, Tensor& y) {
  if (y.numel() == 0) return;
  const Tensor a = readable(a_any), b = readable(b_any);
  const Layout la = layout_of(a), lb = layout_of(b);
  Gemm g{.trans_a = la.transposed, .trans_b = lb.transposed, .m = y.dim(-2), .n = y.dim(-1), .k = a.dim(-1)};
  g.lda = la.ld;
  g.ldb = lb.ld;
  g.ldc = g.n;
  g.in = g.out = y.dtype();
  const Shape batch = batch_dims(y.shape());
  const StridedLoop<3> loop(
      batch,
      {batch_dims(y.strides()), broadcast_strides(batch_dims(a.shape()), batch_dims(a.strides()), batch),
       broadcast_strides(batch_dims(b.shape()), batch_dims(b.strides()), batch)});
  // The innermost batch dim is one call; batch dims that cannot be merged into it take a call each.
  const int inner = loop.shape.size() - 1;
  g.batch = loop.shape[inner];
  g.step_c = loop.inner(0);
  g.step_a = loop.inner(1);
  g.step_b = loop.inner(2);
  for (int64_t i = 0; i < loop.shape.numel() / g.batch; ++i) {
    int64_t rest = i, at[3] = {};
    for (int d = inner - 1; d >= 0; --d) {
      for (int k = 0; k < 3; ++k) at[k] += rest % loop.shape[d] * loop.strides[size_t(k)][d];
      rest /= loop.shape[d];
    }
    g.c = const_cast<void*>(shifted(y, at[0]));
    g.a = shifted(a, at[1]);
    g.b = shifted(b, at[2]);
    gemm(g);
  }
}

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y) {
  linear_add(x, w, bias, {}, y);
}

void linear_add(const Tensor& x_any, const Tensor& w_any, const Tensor& bias, const Tensor& addend,
                Tensor& y) {
  const Tensor x = readable(x_any), w = readable(w_any);
  const Layout lx = layout_of(x), lw = layout_of(w);
  Gemm g{.trans_a = lx.transposed, .trans_b = !lw.transposed, .m = y.dim(0), .n = y.dim(1), .k = x.dim(1)};
  g.a = x.raw();
  g.b = w.raw();
  g.c = y.raw();
  g.lda = lx.ld;
  g.ldb = lw.ld;
  g.ldc = g.n;
  g.in = g.out = y.dtype();
  g.bias = bias ? bias.raw() : nullptr;
  g.addend = addend ? addend.raw() : nullptr;
  g.beta = addend ? 1 : 0;
  gemm(g);
}

}  // namespace rivulet::cuda
