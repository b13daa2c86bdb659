#include "ops/gemm.cuh"
#include "ops/temporal_conv.h"
#include "tensor/cuda.cuh"

// Each tap is one matrix product over all the frames that have a neighbour on its side: the frames of a
// batch entry lie one after the other, so no frame is copied.
namespace rivulet::cuda {
namespace {

struct Frames {
  int64_t b, t, s, c, co;
  Frames(const Tensor& r, const Tensor& taps)
      : b(r.dim(0)), t(r.dim(1)), s(r.dim(2)), c(r.dim(3)), co(taps.dim(1)) {}
};

// `count` frames of every batch entry from `first`, in a tensor whose entries hold `frames` of them.
struct Run {
  const Tensor& x;
  int64_t frames, first, count;
  void* at() const {
    return static_cast<char*>(x.raw()) + first * x.dim(-2) * x.dim(-1) * size_of(x.dtype());
  }
  int64_t step() const { return frames * x.dim(-2) * x.dim(-1); }
};

// to = from * W_k' (or W_k when transposed), added to what is there when `add`, or to the addend, which is
// all of a tensor as large as to's.
void mix(const Run& from, const Tensor& taps, int k, bool transposed, const Run& to, bool add,
         const Tensor& addend = {}) {
  if (from.count == 0) return;
  Gemm g;
  g.trans_b = !transposed;
  g.m = from.count * from.x.dim(-2);
  g.n = to.x.dim(-1);
  g.k = from.x.dim(-1);
  g.a = from.at();
  g.b = static_cast<char*>(taps.raw()) + k * taps.dim(1) * taps.dim(2) * size_of(taps.dtype());
  g.c = to.at();
  g.lda = g.k;
  g.ldb = taps.dim(2);
  g.ldc = g.n;
  g.batch = from.x.dim(0);
  g.step_a = from.step();
  g.step_c = to.step();
  g.in = g.out = from.x.dtype();
  g.beta = add || addend ? 1 : 0;
  g.addend = addend ? addend.raw() : nullptr;
  gemm(g);
}

// parts [B, Co, C] = dy' x per batch entry.
void correlate(const Run& dy, const Run& x, const Tensor& parts, bool add) {
  Gemm g;
  g.trans_a = true;
  g.m = dy.x.dim(-1);
  g.n = x.x.dim(-1);
  g.k = dy.count * dy.x.dim(-2);
  g.a = dy.at();
  g.b = x.at();
  g.c = parts.raw();
  g.lda = g.m;
  g.ldb = g.ldc = g.n;
  g.batch = dy.x.dim(0);
  g.step_a = dy.step();
  g.step_b = x.step();
  g.step_c = g.m * g.n;
  g.in = g.out = dy.x.dtype();
  g.beta = add ? 1 : 0;
  gemm(g);
}

}  // namespace

void temporal_conv3(const Tensor& r, const Tensor& taps, const Tensor& left, bool residual, Tensor& y) {
  const int64_t t = r.dim(1);
  mix({r, t, 0, t}, taps, 1, false, {y, t, 0, t}, false, residual ? r : Tensor());
  mix({r, t, 0, t - 1}, taps, 0, false, {y, t, 1, t - 1}, true);
  mix({r, t, 1, t - 1}, taps, 2, false, {y, t, 0, t - 1}, true);
  if (left) mix({left, 1, 0, 1}, taps, 0, false, {y, t, 0, 1}, true);
}

void temporal_conv3_backward(const Tensor& dy, const Tensor& r, const Tensor& taps, const Tensor& left,
                             bool residual, Tensor& dr, Tensor& dtaps, Tensor& dleft) {
  const Frames n(r, taps);
  if (residual) dr.copy_from(dy);
  mix({dy, n.t, 0, n.t}, taps, 1, true, {dr, n.t, 0, n.t}, residual);
  mix({dy, n.t, 1, n.t - 1}, taps, 0, true, {dr, n.t, 0, n.t - 1}, true);
  mix({dy, n.t, 0, n.t - 1}, taps, 2, true, {dr, n.t, 1, n.t - 1}, true);
  if (left) mix({dy, n.t, 0, 1}, taps, 0, true, {dleft, 1, 0, 1}, false);

  const Tensor parts({n.b, n.co, n.c}, r.dtype(), r.device());
  for (int k = 0; k < 3; ++k) {
    const Tensor to = dtaps.slice(0, k, k + 1);
    const int64_t count = k == 1 ? n.t : n.t - 1;
    const bool from_left = k == 0 && left;
    if (count > 0) correlate({dy, n.t, k == 0 ? 1 : 0, count}, {r, n.t, k == 2 ? 1 : 0, count}, parts, false);
    if (from_left) correlate({dy, n.t, 0, 1}, {left, 1, 0, 1}, parts, count > 0);
    count > 0 || from_left ? sum_to(to, parts) : fill(to, 0);
  }
}

}  // namespace rivulet::cuda
