#include "ops/gdn.h"

#include <cmath>

#include "ops/gemm.h"
#include "ops/rows.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {
namespace {

struct Sizes {
  int64_t b, t, s, h, d;
  explicit Sizes(const Tensor& q) : b(q.dim(0)), t(q.dim(1)), s(q.dim(2)), h(q.dim(3)), d(q.dim(4)) {}
};

// One (batch, head, frame): the unit of the parallel phases.
struct Cell {
  int64_t b, h, f, index;  // index = (b * H + h) * T + f, the order of the saved states
  Cell(int64_t i, const Sizes& n) : b(i / n.t / n.h), h(i / n.t % n.h), f(i % n.t), index(i) {}
};

// The tokens of a cell as rows.
template <class T>
Rows<T> rows(const Tensor& x, const Cell& c) {  // x [B, T, S, H, D]
  const Shape& stride = x.strides();
  return {x.data<T>() + c.b * stride[0] + c.f * stride[1] + c.h * stride[3], stride[2]};
}
template <class T>
Rows<T> entries(const Tensor& x, const Cell& c) {  // x [B, T, S, H]
  const Shape& stride = x.strides();
  return {x.data<T>() + c.b * stride[0] + c.f * stride[1] + c.h * stride[3], stride[2]};
}
template <class T>
T decay_of(const Tensor& decay, const Cell& c) {
  return decay.data<T>()[(c.b * decay.dim(1) + c.f) * decay.dim(2) + c.h];
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
// y += a * x
template <class T>
void axpy(int64_t n, T a, const T* x, T* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}
template <class T>
void transpose(const T* in, int64_t d, T* out) {
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < d; ++j) out[j * d + i] = in[i * d + j];
}

// out = add + g (I - P) prev for a state of `cols` columns; transposed: (I - P)' for the gradient. out may be
// add.
template <class T>
void absorb(bool transposed, int64_t d, int64_t cols, T g, const T* p, const T* prev, const T* add, T* out) {
  for (int64_t i = 0; i < d * cols; ++i) out[i] = add[i] + g * prev[i];
  gemm<T>(transposed, false, d, cols, d, -g, p, d, prev, cols, T(1), out, cols, false);
}

// P, A (left in m), Pz and b (left in z) of one cell.
template <class T>
void summarize_frame(const GdnInputs& in, const Sizes& n, const Cell& c, GdnSaved& saved) {
  const auto k = rows<T>(in.k, c), kr = rows<T>(in.k_rot, c), v = rows<T>(in.v, c);
  const auto beta = entries<T>(in.beta, c);
  const int64_t d = n.d, square = c.index * d * d;
  const auto weighted = scratch<T>(n.s * d);
  const auto weigh = [&](Rows<T> x) {
    for (int64_t i = 0; i < n.s; ++i)
      for (int64_t j = 0; j < d; ++j) weighted[i * d + j] = *beta[i] * x[i][j];
  };
  weigh(kr);
  gemm<T>(true, false, d, d, n.s, T(1), weighted.get(), d, kr.data, kr.stride, T(0),
          saved.p.data<T>() + square, d, false);
  gemm<T>(true, false, d, d, n.s, T(1), weighted.get(), d, v.data, v.stride, T(0), saved.m.data<T>() + square,
          d, false);
  weigh(k);
  gemm<T>(true, false, d, d, n.s, T(1), weighted.get(), d, k.data, k.stride, T(0),
          saved.p_z.data<T>() + square, d, false);
  T* b = saved.z.data<T>() + c.index * d;
  std::fill_n(b, d, T(0));
  for (int64_t i = 0; i < n.s; ++i) axpy(d, T(1), weighted.get() + i * d, b);
}

// Both scans of one (batch, head) for a state of `cols` columns. On entry `state` holds what each frame
// adds; on return the state after each frame. `later` gets the state of the reverse scan.
template <class T>
void scan(const GdnInputs& in, const Sizes& n, int64_t bh, bool reverse_scan, int64_t cols, const T* start,
          const T* p, T* state, T* later) {
  const int64_t size = n.d * cols, pp = n.d * n.d;
  const auto decay = [&](int64_t f) { return decay_of<T>(in.decay, Cell(bh * n.t + f, n)); };
  std::fill_n(later + (reverse_scan ? n.t - 1 : 0) * size, reverse_scan ? size : n.t * size, T(0));
  for (int64_t f = n.t - 1; reverse_scan && f > 0; --f)
    absorb(false, n.d, cols, decay(f), p + f * pp, later + f * size, state + f * size,
           later + (f - 1) * size);
  for (int64_t f = 0; f < n.t; ++f)
    absorb(false, n.d, cols, decay(f), p + f * pp, f == 0 ? start : state + (f - 1) * size, state + f * size,
           state + f * size);
}

// out and den of one cell.
template <class T>
void read_state(const GdnInputs& in, const Sizes& n, const Cell& c, double eps, const GdnSaved& saved,
                const Tensor& out) {
  const int64_t d = n.d;
  const auto sum = scratch<T>(d * d + d);
  T* zsum = sum.get() + d * d;
  const T *m = saved.m.data<T>() + c.index * d * d, *r = saved.r.data<T>() + c.index * d * d;
  const T *z = saved.z.data<T>() + c.index * d, *zr = saved.zr.data<T>() + c.index * d;
  for (int64_t i = 0; i < d * d; ++i) sum[i] = m[i] + r[i];
  for (int64_t i = 0; i < d; ++i) zsum[i] = z[i] + zr[i];
  const auto q = rows<T>(in.q, c), qr = rows<T>(in.q_rot, c), y = rows<T>(out, c);
  const auto den = entries<T>(saved.den, c);
  gemm<T>(false, false, n.s, d, d, T(1), qr.data, qr.stride, sum.get(), d, T(0), y.data, y.stride, false);
  for (int64_t i = 0; i < n.s; ++i) {
    *den[i] = dot(q[i], zsum, d) + T(eps);
    const T inverse = T(1) / *den[i];
    for (int64_t j = 0; j < d; ++j) y[i][j] *= inverse;
  }
}

// dq, dq_rot and the gradients X [D, D], y [D] that reach the summed states of one cell.
template <class T>
void read_state_backward(const GdnInputs& in, const Sizes& n, const Cell& c, const GdnSaved& saved,
                         const Tensor& out, const Tensor& dout, GdnInputs& grads, T* dm, T* dz) {
  const int64_t d = n.d;
  const auto sum = scratch<T>(d * d + d), dnum = scratch<T>(n.s * d);
  T* zsum = sum.get() + d * d;
  const T *m = saved.m.data<T>() + c.index * d * d, *r = saved.r.data<T>() + c.index * d * d;
  const T *z = saved.z.data<T>() + c.index * d, *zr = saved.zr.data<T>() + c.index * d;
  for (int64_t i = 0; i < d * d; ++i) sum[i] = m[i] + r[i];
  for (int64_t i = 0; i < d; ++i) zsum[i] = z[i] + zr[i];
  const auto q = rows<T>(in.q, c), qr = rows<T>(in.q_rot, c), y = rows<T>(out, c), dy = rows<T>(dout, c);
  const auto dq = rows<T>(grads.q, c), dqr = rows<T>(grads.q_rot, c);
  const auto den = entries<T>(saved.den, c);
  std::fill_n(dz, d, T(0));
  for (int64_t i = 0; i < n.s; ++i) {
    const T inverse = T(1) / *den[i];
    const T dden = -inverse * dot(dy[i], y[i], d);
    for (int64_t j = 0; j < d; ++j) dnum[i * d + j] = dy[i][j] * inverse;
    for (int64_t j = 0; j < d; ++j) dq[i][j] = dden * zsum[j];
    axpy(d, dden, q[i], dz);
  }
  gemm<T>(false, true, n.s, d, d, T(1), dnum.get(), d, sum.get(), d, T(0), dqr.data, dqr.stride, false);
  gemm<T>(true, false, d, d, n.s, T(1), qr.data, qr.stride, dnum.get(), d, T(0), dm, d, false);
}

// Gradients of both scans of one (batch, head). On entry `dstate` holds the gradients that reach the summed
// states; on return those of what each frame adds. `carry` enters as the gradient of the final state and
// leaves as that of the start. dp [T, D, D] is written, dg [T] added to.
template <class T>
void scan_backward(const GdnInputs& in, const Sizes& n, int64_t bh, bool reverse_scan, int64_t cols,
                   const T* start, const T* p, const T* state, const T* later, T* dstate, T* carry, T* dp,
                   T* dg) {
  const int64_t d = n.d, size = d * cols, pp = d * d;
  const auto decay = [&](int64_t f) { return decay_of<T>(in.decay, Cell(bh * n.t + f, n)); };
  const auto kept = scratch<T>(size), reached = scratch<T>(n.t * size), zero = scratch<T>(size);
  std::fill_n(zero.get(), size, T(0));
  std::copy_n(dstate, n.t * size, reached.get());
  // One absorption, after = add + g (I - P) before, given grad, the gradient of `after`.
  const auto unabsorb = [&](int64_t f, const T* before, const T* grad, T previous_dp) {
    absorb(false, d, cols, T(1), p + f * pp, before, zero.get(), kept.get());
    dg[f] += dot(grad, kept.get(), size);
    gemm<T>(false, true, d, d, cols, -decay(f), grad, cols, before, cols, previous_dp, dp + f * pp, d, false);
  };
  for (int64_t f = n.t - 1; f >= 0; --f) {
    T* e = dstate + f * size;
    for (int64_t i = 0; i < size; ++i) e[i] += carry[i];
    unabsorb(f, f == 0 ? start : state + (f - 1) * size, e, T(0));
    absorb(true, d, cols, decay(f), p + f * pp, e, zero.get(), carry);
  }
  if (!reverse_scan) return;
  const auto l = scratch<T>(size), next = scratch<T>(size);
  std::copy_n(reached.get(), size, l.get());
  for (int64_t f = 1; f < n.t; ++f) {
    unabsorb(f, later + f * size, l.get(), T(1));
    axpy(size, T(1), l.get(), dstate + f * size);
    absorb(true, d, cols, decay(f), p + f * pp, l.get(), reached.get() + f * size, next.get());
    std::copy_n(next.get(), size, l.get());
  }
}

// dk, dk_rot, dv and dbeta of one cell from the gradients of P, A, Pz and b. Overwrites dp and dpz.
template <class T>
void summarize_frame_backward(const GdnInputs& in, const Sizes& n, const Cell& c, T* dp, const T* da, T* dpz,
                              const T* db, GdnInputs& grads) {
  const int64_t d = n.d, s = n.s;
  const auto k = rows<T>(in.k, c), kr = rows<T>(in.k_rot, c), v = rows<T>(in.v, c);
  const auto dk = rows<T>(grads.k, c), dkr = rows<T>(grads.k_rot, c), dv = rows<T>(grads.v, c);
  const auto beta = entries<T>(in.beta, c), dbeta = entries<T>(grads.beta, c);
  // P and Pz are quadratic in the keys: only the symmetric part of their gradient acts.
  const auto symmetrize = [&](T* x) {
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j <= i; ++j) x[i * d + j] = x[j * d + i] = x[i * d + j] + x[j * d + i];
  };
  symmetrize(dp);
  symmetrize(dpz);
  const auto kz = scratch<T>(s * d);
  gemm<T>(false, false, s, d, d, T(1), k.data, k.stride, dpz, d, T(0), kz.get(), d, false);
  gemm<T>(false, false, s, d, d, T(1), kr.data, kr.stride, da, d, T(0), dv.data, dv.stride, false);
  gemm<T>(false, false, s, d, d, T(1), kr.data, kr.stride, dp, d, T(0), dkr.data, dkr.stride, false);
  for (int64_t i = 0; i < s; ++i) {
    const T* kzi = kz.get() + i * d;
    *dbeta[i] =
        T(0.5) * dot(dkr[i], kr[i], d) + dot(dv[i], v[i], d) + T(0.5) * dot(kzi, k[i], d) + dot(k[i], db, d);
    for (int64_t j = 0; j < d; ++j) dk[i][j] = *beta[i] * (kzi[j] + db[j]);
  }
  gemm<T>(false, true, s, d, d, T(1), v.data, v.stride, da, d, T(1), dkr.data, dkr.stride, false);
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < d; ++j) {
      dkr[i][j] *= *beta[i];
      dv[i][j] *= *beta[i];
    }
}

}  // namespace

void gdn(const GdnInputs& in, bool reverse_scan, double eps, GdnResult& result, GdnSaved& saved) {
  const Sizes n(in.q);
  const int64_t dd = n.d * n.d;
  dispatch_real(in.q.dtype(), "gdn", [&]<class T>() {
    parallel_for(n.b * n.h * n.t, 1,
                 [&](int64_t i, int64_t) { summarize_frame<T>(in, n, Cell(i, n), saved); });
    parallel_for(n.b * n.h, 1, [&](int64_t i, int64_t) {
      const int64_t first = i * n.t, last = first + n.t - 1;
      const auto start = scratch<T>(dd);
      transpose(in.start.kv.data<T>() + i * dd, n.d, start.get());
      scan<T>(in, n, i, reverse_scan, n.d, start.get(), saved.p.data<T>() + first * dd,
              saved.m.data<T>() + first * dd, saved.r.data<T>() + first * dd);
      scan<T>(in, n, i, reverse_scan, 1, in.start.z.data<T>() + i * n.d, saved.p_z.data<T>() + first * dd,
              saved.z.data<T>() + first * n.d, saved.zr.data<T>() + first * n.d);
      transpose(saved.m.data<T>() + last * dd, n.d, result.final.kv.data<T>() + i * dd);
      std::copy_n(saved.z.data<T>() + last * n.d, n.d, result.final.z.data<T>() + i * n.d);
    });
    parallel_for(n.b * n.h * n.t, 1,
                 [&](int64_t i, int64_t) { read_state<T>(in, n, Cell(i, n), eps, saved, result.out); });
  });
}

void gdn_backward(const GdnInputs& in, bool reverse_scan, const GdnSaved& saved, const Tensor& out,
                  const Tensor& dout, const GdnState& dfinal, GdnInputs& grads) {
  const Sizes n(in.q);
  const int64_t dd = n.d * n.d;
  Tensor da = empty_like(saved.m), db = empty_like(saved.z), dp = empty_like(saved.p),
         dpz = empty_like(saved.p);
  dispatch_real(in.q.dtype(), "gdn", [&]<class T>() {
    parallel_for(n.b * n.h * n.t, 1, [&](int64_t i, int64_t) {
      read_state_backward<T>(in, n, Cell(i, n), saved, out, dout, grads, da.data<T>() + i * dd,
                             db.data<T>() + i * n.d);
    });
    parallel_for(n.b * n.h, 1, [&](int64_t i, int64_t) {
      const int64_t first = i * n.t;
      const auto start = scratch<T>(dd), carry = scratch<T>(dd), dg = scratch<T>(n.t);
      std::fill_n(dg.get(), n.t, T(0));
      transpose(in.start.kv.data<T>() + i * dd, n.d, start.get());
      transpose(dfinal.kv.data<T>() + i * dd, n.d, carry.get());
      scan_backward<T>(in, n, i, reverse_scan, n.d, start.get(), saved.p.data<T>() + first * dd,
                       saved.m.data<T>() + first * dd, saved.r.data<T>() + first * dd,
                       da.data<T>() + first * dd, carry.get(), dp.data<T>() + first * dd, dg.get());
      transpose(carry.get(), n.d, grads.start.kv.data<T>() + i * dd);
      T* dz = grads.start.z.data<T>() + i * n.d;
      std::copy_n(dfinal.z.data<T>() + i * n.d, n.d, dz);
      scan_backward<T>(in, n, i, reverse_scan, 1, in.start.z.data<T>() + i * n.d,
                       saved.p_z.data<T>() + first * dd, saved.z.data<T>() + first * n.d,
                       saved.zr.data<T>() + first * n.d, db.data<T>() + first * n.d, dz,
                       dpz.data<T>() + first * dd, dg.get());
      for (int64_t f = 0; f < n.t; ++f) grads.decay.data<T>()[(i / n.h * n.t + f) * n.h + i % n.h] = dg[f];
    });
    parallel_for(n.b * n.h * n.t, 1, [&](int64_t i, int64_t) {
      summarize_frame_backward<T>(in, n, Cell(i, n), dp.data<T>() + i * dd, da.data<T>() + i * dd,
                                  dpz.data<T>() + i * dd, db.data<T>() + i * n.d, grads);
    });
  });
}

}  // namespace cpu

namespace {

void check_inputs(const GdnInputs& in) {
  const Shape& x = in.q.shape();
  check(x.size() == 5 && x.numel() > 0, "gdn: q has shape ", x, ", wanted [B, T, S, H, D]");
  for (const Tensor* t : {&in.k, &in.q_rot, &in.k_rot, &in.v}) {
    check(t->shape() == x, "gdn: an input has shape ", t->shape(), ", q ", x);
    check(t->dtype() == in.q.dtype(), "gdn: an input is ", t->dtype(), ", q ", in.q.dtype());
  }
  check(in.beta.shape() == Shape{x[0], x[1], x[2], x[3]}, "gdn: beta has shape ", in.beta.shape(), ", q ", x);
  check(in.decay.shape() == Shape{x[0], x[1], x[3]}, "gdn: decay has shape ", in.decay.shape(), ", q ", x);
  const Shape kv{x[0], x[3], x[4], x[4]}, z{x[0], x[3], x[4]};
  check(!in.start.kv || in.start.kv.shape() == kv, "gdn: start.kv has shape ", in.start.kv.shape(),
        ", wanted ", kv);
  check(!in.start.z || in.start.z.shape() == z, "gdn: start.z has shape ", in.start.z.shape(), ", wanted ",
        z);
}

// The same inputs in the type that is computed in, dense where the kernels ask for it.
GdnInputs prepare(const GdnInputs& in) {
  const DType type = accumulate_dtype(in.q.dtype());
  const Shape& x = in.q.shape();
  const auto dense = [&](const Tensor& t) { return t.to(type).contiguous(); };
  const auto or_zeros = [&](const Tensor& t, const Shape& shape) {
    return t ? dense(t) : zeros(shape, type, in.q.device());
  };
  return {dense_rows(in.q.to(type)),
          dense_rows(in.k.to(type)),
          dense_rows(in.q_rot.to(type)),
          dense_rows(in.k_rot.to(type)),
          dense_rows(in.v.to(type)),
          dense(in.beta),
          dense(in.decay),
          {or_zeros(in.start.kv, {x[0], x[3], x[4], x[4]}), or_zeros(in.start.z, {x[0], x[3], x[4]})}};
}

GdnInputs detach(const GdnInputs& in) {
  return {in.q.detach(), in.k.detach(),    in.q_rot.detach(), in.k_rot.detach(),
          in.v.detach(), in.beta.detach(), in.decay.detach(), {in.start.kv.detach(), in.start.z.detach()}};
}

Tensor or_zeros_like(const Tensor& g, const Tensor& x) { return g ? g.contiguous() : zeros_like(x); }

}  // namespace

GdnResult gdn(const Tensor& q, const Tensor& k, const Tensor& q_rot, const Tensor& k_rot, const Tensor& v,
              const Tensor& beta, const Tensor& decay, const GdnState& start, bool reverse_scan, float eps) {
  const GdnInputs given{q, k, q_rot, k_rot, v, beta, decay, start};
  check_inputs(given);
  const GdnInputs in = prepare(given);
  const int64_t b = q.dim(0), t = q.dim(1), s = q.dim(2), h = q.dim(3), d = q.dim(4);
  const auto make = [&](const Shape& shape) { return Tensor(shape, in.q.dtype(), q.device()); };
  GdnSaved saved{make({b, h, t, d, d}), make({b, h, t, d, d}), make({b, h, t, d, d}), make({b, h, t, d, d}),
                 make({b, h, t, d}),    make({b, h, t, d}),    make({b, t, s, h})};
  GdnResult result{make(q.shape()), {make({b, h, d, d}), make({b, h, d})}};
  ON_DEVICE(q, gdn(in, reverse_scan, eps, result, saved));
  const Tensors outputs = record(
      "gdn", {result.out, result.final.kv, result.final.z},
      {in.q, in.k, in.q_rot, in.k_rot, in.v, in.beta, in.decay, in.start.kv, in.start.z},
      [in = detach(in), saved, reverse_scan, result](const Tensors& dy) -> Tensors {
        GdnInputs d{empty_like(in.q),     empty_like(in.k),
                    empty_like(in.q_rot), empty_like(in.k_rot),
                    empty_like(in.v),     empty_like(in.beta),
                    empty_like(in.decay), {empty_like(in.start.kv), empty_like(in.start.z)}};
        const Tensor dout = or_zeros_like(dy[0], result.out);
        const GdnState dfinal{or_zeros_like(dy[1], result.final.kv), or_zeros_like(dy[2], result.final.z)};
        ON_DEVICE(in.q, gdn_backward(in, reverse_scan, saved, result.out, dout, dfinal, d));
        return {d.q, d.k, d.q_rot, d.k_rot, d.v, d.beta, d.decay, d.start.kv, d.start.z};
      });
  return {outputs[0].to(q.dtype()), {outputs[1], outputs[2]}};
}

const OpCase& gdn_case() {
  // Shapes of all inputs for [B, T, S, H, D]; without a start the op runs forward only.
  const auto shapes = [](int64_t b, int64_t t, int64_t s, int64_t h, int64_t d, bool with_start) -> Shapes {
    const Shape x{b, t, s, h, d};
    Shapes list = {x, x, x, x, x, {b, t, s, h}, {b, t, h}};
    if (with_start) list.insert(list.end(), {{b, h, d, d}, {b, h, d}});
    return list;
  };
  static const OpCase kCase = {
      .name = "gdn",
      .run = [](const Tensors& in) -> Tensors {
        const bool with_start = in.size() == 9;
        const GdnResult r = gdn(in[0], in[1], in[2], in[3], in[4], in[5], in[6],
                                with_start ? GdnState{in[7], in[8]} : GdnState{}, with_start);
        return {r.out, r.final.kv, r.final.z};
      },
      .check = {shapes(2, 3, 5, 2, 3, true), shapes(1, 1, 1, 1, 1, true), shapes(1, 4, 3, 1, 4, true),
                shapes(1, 3, 4, 2, 2, false)},
      .bench = {shapes(1, 3, 576, 4, 32, true), shapes(1, 3, 880, 20, 112, true)},
      .bytes =
          [](const Shapes& s) {
            return bytes_of(s) + bytes_of({s[0], s.back()});
          },
      .flops =
          [](const Shapes& s) {
            const double tokens = double(s[0].numel()) / double(s[0][4]), d = double(s[0][4]);
            return tokens * d * (8 * d + 2) + double(s[0][0] * s[0][1] * s[0][3]) * 4 * d * d * d;
          },
      // The features as the model makes them: q and k not negative, k scaled by 1 / sqrt(D S).
      .fill =
          [](const Shape& shape, int i, Rng& rng, DType dtype) {
            if (i == 5 || i == 6) return rand_uniform(shape, 0.05, 0.95, rng, dtype);
            if (i == 0) return rand_uniform(shape, 0.1, 1.5, rng, dtype);
            if (i == 8) return rand_uniform(shape, 0.5, 1, rng, dtype);
            if (i == 2 || i == 4) return randn(shape, rng, dtype);
            const double scale = 1 / std::sqrt(double(shape[2] * shape[shape.size() - 1]));
            if (i == 1) return rand_uniform(shape, 0.1 * scale, 1.5 * scale, rng, dtype);
            const Tensor x = zeros(shape, dtype);
            return i == 3 || i == 7 ? x.add_in_place(randn(shape, rng, dtype), scale) : x;
          },
  };
  return kCase;
}

}  // namespace rivulet
