#include "ops/norm_rope.h"

#include "ops/norm.h"
#include "ops/norm_pass.cuh"
#include "ops/rope.h"

namespace rivulet::cuda {
namespace {

constexpr RowNorm norm_of(int64_t rows) { return {.centred = false, .offset = 0, .rows_per_group = rows}; }

// [rows, C] as [batch, N, heads, D].
Tensor per_head(const Tensor& x, const Tensor& cos) {
  const int64_t n = cos.dim(0), d = 2 * cos.dim(1);
  return x.reshape({x.dim(0) / n, n, x.dim(1) / d, d});
}

}  // namespace

void rms_norm_rope(const Tensor& x, const Tensor& w, const Tensor& cos, const Tensor& sin, double eps,
                   const Tensor& y, const Tensor& r) {
  NormPass p{.norm = norm_of(x.dim(0)), .eps = eps};
  p.x = x;
  p.w = w;
  p.cos = cos;
  p.sin = sin;
  p.y = y;
  p.r = r;
  if (norm_pass(p)) return;
  const Tensor in = x.contiguous();
  Tensor h = empty_like(in), inverse = r, rotated = empty_like(per_head(h, cos));
  rms_norm(in, w, eps, 0, h, inverse);
  rope(per_head(h, cos), cos, sin, false, rotated);
  y.copy_from(rotated.reshape(y.shape()));
}

void rms_norm_rope_backward(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& cos,
                            const Tensor& sin, const Tensor& r, Tensor& dx, Tensor& dw) {
  NormPassBackward p{.norm = norm_of(x.dim(0))};
  p.g = g;
  p.x = x;
  p.w = w;
  p.cos = cos;
  p.sin = sin;
  p.r = r;
  p.dx = dx;
  p.dw = dw;
  if (norm_pass_backward(p)) return;
  const Tensor turned = per_head(g, cos);
  Tensor back = empty_like(turned);
  rope(turned, cos, sin, true, back);
  rms_norm_backward(back.reshape(g.shape()), x.contiguous(), w, 0, r, dx, dw);
}

}  // namespace rivulet::cuda
