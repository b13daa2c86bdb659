#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/fast_math.h"
#include "ops/gemm.h"
#include "ops/half.h"
#include "ops/rows.h"
#include "ops/shape.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {
namespace {

// A tile of scores stays in the second-level cache, and its rows fill the row tiles of gemm (14 or 6). A
// chunk of keys is the unit of work of the backward pass, which keeps one partial dq per chunk.
constexpr int64_t kQueryTile = 252, kKeyTile = 256, kKeyChunk = 1024;

// The rows of one head of a [B, N, H, D] tensor.
template <class T>
Rows<T> head_rows(const Tensor& x, int64_t b, int64_t h) {
  return {x.data<T>() + b * x.strides()[0] + h * x.strides()[2], x.strides()[1]};
}

// Everything that one (batch, head) reads.
template <class T>
struct Head {
  Rows<T> q, k, v;
  const uint8_t* mask;  // null when every key counts
  int64_t d;
  T scale2;  // scores are kept in base 2: scale * log2(e)

  Head(const Tensor& q_, const Tensor& k_, const Tensor& v_, double scale, const Tensor& key_mask, int64_t b,
       int64_t h)
      : q(head_rows<T>(q_, b, h)),
        k(head_rows<T>(k_, b, h)),
        v(head_rows<T>(v_, b, h)),
        mask(key_mask ? key_mask.data<uint8_t>() + b * key_mask.dim(1) : nullptr),
        d(q_.dim(3)),
        scale2(T(scale * kLog2E)) {}

  // s [nq, nk] = scores of queries q0.. against keys k0.., -inf where masked.
  void scores(int64_t q0, int64_t nq, int64_t k0, int64_t nk, T* s) const {
    gemm<T>(false, true, nq, nk, d, scale2, q[q0], q.stride, k[k0], k.stride, T(0), s, nk, false);
    if (mask == nullptr) return;
    for (int64_t i = 0; i < nq; ++i)
      for (int64_t j = 0; j < nk; ++j)
        s[i * nk + j] = mask[k0 + j] ? s[i * nk + j] : -std::numeric_limits<T>::infinity();
  }
};

// The largest of n values. Independent lanes keep the comparisons from waiting for each other.
template <class T>
T largest(const T* s, int64_t n) {
  constexpr int64_t kLanes = 32;
  T top[kLanes];
  std::fill_n(top, kLanes, -std::numeric_limits<T>::infinity());
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) top[l] = s[j + l] > top[l] ? s[j + l] : top[l];
  for (; j < n; ++j) top[0] = s[j] > top[0] ? s[j] : top[0];
#pragma GCC unroll 5
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) top[l] = top[l + half] > top[l] ? top[l + half] : top[l];
  return top[0];
}

// Turns a row of scores into weights relative to the largest score so far. Returns the factor by which
// what was summed before must shrink.
template <class T>
T softmax_row(T* s, int64_t nk, T& row_max, T& row_sum) {
  const T top = std::max(row_max, largest(s, nk));
  const T base = top == -std::numeric_limits<T>::infinity() ? T(0) : top;
  constexpr int64_t kLanes = 32;
  T sums[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= nk; j += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      const T p = fast_exp2(s[j + l] - base);
      s[j + l] = p;
      sums[l] += p;
    }
  }
  for (; j < nk; ++j) {
    s[j] = fast_exp2(s[j] - base);
    sums[0] += s[j];
  }
#pragma GCC unroll 5
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) sums[l] += sums[l + half];
  const T sum = sums[0];
  const T shrink = fast_exp2(row_max - base);
  row_max = top;
  row_sum = row_sum * shrink + sum;
  return shrink;
}

// The output rows q0 .. q0 + nq of one head.
template <class T>
void forward_tile(const Head<T>& head, int64_t q0, int64_t nq, int64_t m, Rows<T> out, T* lse) {
  const int64_t d = head.d;
  const auto s = scratch<T>(kQueryTile * kKeyTile), o = scratch<T>(nq * d);
  T row_max[kQueryTile], row_sum[kQueryTile];
  std::fill_n(row_max, nq, -std::numeric_limits<T>::infinity());
  std::fill_n(row_sum, nq, T(0));
  std::fill_n(o.get(), nq * d, T(0));
  for (int64_t k0 = 0; k0 < m; k0 += kKeyTile) {
    const int64_t nk = std::min(kKeyTile, m - k0);
    head.scores(q0, nq, k0, nk, s.get());
    for (int64_t i = 0; i < nq; ++i) {
      const T shrink = softmax_row(s.get() + i * nk, nk, row_max[i], row_sum[i]);
      for (int64_t c = 0; c < d; ++c) o[i * d + c] *= shrink;
    }
    gemm<T>(false, false, nq, d, nk, T(1), s.get(), nk, head.v[k0], head.v.stride, T(1), o.get(), d, false);
  }
  for (int64_t i = 0; i < nq; ++i) {
    const bool empty = row_sum[i] == T(0);
    const T inverse = empty ? T(0) : T(1) / row_sum[i];
    for (int64_t c = 0; c < d; ++c) out[q0 + i][c] = o[i * d + c] * inverse;
    lse[q0 + i] = empty ? std::numeric_limits<T>::infinity() : row_max[i] + std::log2(row_sum[i]);
  }
}

// Gradients from keys k_begin .. k_end of one head: dk and dv of those keys, and their share of dq.
template <class T>
void backward_chunk(const Head<T>& head, Rows<T> dout, const T* lse, const T* delta, double scale, int64_t n,
                    int64_t k_begin, int64_t k_end, Rows<T> dq, Rows<T> dk, Rows<T> dv) {
  const int64_t d = head.d;
  const auto p = scratch<T>(kQueryTile * kKeyTile), ds = scratch<T>(kQueryTile * kKeyTile);
  for (int64_t q0 = 0; q0 < n; q0 += kQueryTile) {
    const int64_t nq = std::min(kQueryTile, n - q0);
    const T later_query = q0 == 0 ? T(0) : T(1);
    for (int64_t k0 = k_begin; k0 < k_end; k0 += kKeyTile) {
      const int64_t nk = std::min(kKeyTile, k_end - k0);
      const T later_key = k0 == k_begin ? T(0) : T(1);
      head.scores(q0, nq, k0, nk, p.get());
      gemm<T>(false, true, nq, nk, d, T(1), dout[q0], dout.stride, head.v[k0], head.v.stride, T(0), ds.get(),
              nk, false);
      for (int64_t i = 0; i < nq; ++i) {
        T *pi = p.get() + i * nk, *di = ds.get() + i * nk;
        const T row_lse = lse[q0 + i], row_delta = delta[q0 + i];
#pragma omp simd
        for (int64_t j = 0; j < nk; ++j) {
          pi[j] = fast_exp2(pi[j] - row_lse);
          di[j] = T(scale) * pi[j] * (di[j] - row_delta);
        }
      }
      gemm<T>(true, false, nk, d, nq, T(1), p.get(), nk, dout[q0], dout.stride, later_query, dv[k0],
              dv.stride, false);
      gemm<T>(true, false, nk, d, nq, T(1), ds.get(), nk, head.q[q0], head.q.stride, later_query, dk[k0],
              dk.stride, false);
      gemm<T>(false, false, nq, d, nk, T(1), ds.get(), nk, head.k[k0], head.k.stride, later_key, dq[q0],
              dq.stride, false);
    }
  }
}

// delta [B, H, N] = dout . out
template <class T>
Tensor row_products(const Tensor& dout, const Tensor& out) {
  const int64_t b = out.dim(0), n = out.dim(1), h = out.dim(2), d = out.dim(3);
  Tensor delta({b, h, n}, out.dtype());
  const T *g = dout.data<T>(), *y = out.data<T>();
  T* to = delta.data<T>();
  parallel_for(b * n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t head = 0; head < h; ++head) {
        const int64_t at = (row * h + head) * d;
        T sum = 0;
        for (int64_t c = 0; c < d; ++c) sum += g[at + c] * y[at + c];
        to[(row / n * h + head) * n + row % n] = sum;
      }
  });
  return delta;
}

}  // namespace

void attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, const Tensor& key_mask,
               Tensor& out, Tensor& lse) {
  dispatch_real(q.dtype(), "attention", [&]<class T>() {
    const int64_t n = q.dim(1), h = q.dim(2), tiles = (n + kQueryTile - 1) / kQueryTile;
    parallel_for(q.dim(0) * h * tiles, 1, [&](int64_t task, int64_t) {
      const int64_t bh = task / tiles, q0 = task % tiles * kQueryTile;
      const Head<T> head(q, k, v, scale, key_mask, bh / h, bh % h);
      forward_tile(head, q0, std::min(kQueryTile, n - q0), k.dim(1), head_rows<T>(out, bh / h, bh % h),
                   lse.data<T>() + bh * n);
    });
  });
}

void attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                        const Tensor& key_mask, const Tensor& out, const Tensor& lse, Tensor& dq, Tensor& dk,
                        Tensor& dv) {
  const int64_t n = q.dim(1), m = k.dim(1), h = q.dim(2), chunks = (m + kKeyChunk - 1) / kKeyChunk;
  // One dq per chunk of keys, added up in order, so that the result does not depend on the threads.
  Tensors parts(chunks);
  for (int64_t c = 0; c < chunks; ++c) parts[c] = c == 0 ? dq : empty_like(dq);
  dispatch_real(q.dtype(), "attention", [&]<class T>() {
    const Tensor delta = row_products<T>(dout, out);
    parallel_for(q.dim(0) * h * chunks, 1, [&](int64_t task, int64_t) {
      const int64_t bh = task / chunks, chunk = task % chunks, b = bh / h, i = bh % h;
      backward_chunk(Head<T>(q, k, v, scale, key_mask, b, i), head_rows<T>(dout, b, i),
                     lse.data<T>() + bh * n, delta.data<T>() + bh * n, scale, n, chunk * kKeyChunk,
                     std::min(m, (chunk + 1) * kKeyChunk), head_rows<T>(parts[chunk], b, i),
                     head_rows<T>(dk, b, i), head_rows<T>(dv, b, i));
    });
  });
  for (int64_t c = 1; c < chunks; ++c) dq.add_in_place(parts[c]);
}

}  // namespace cpu

namespace {

void check_inputs(const Tensor& q, const Tensors& ks, const Tensors& vs, const Tensor& key_mask) {
  check(!ks.empty() && ks.size() == vs.size(), "attention: got ", ks.size(), " tensors of keys and ",
        vs.size(), " of values");
  int64_t keys = 0;
  Tensors all{q};
  for (size_t i = 0; i < ks.size(); ++i) {
    const Tensor &k = ks[i], &v = vs[i];
    check(q.dims() == 4 && k.dims() == 4, "attention: q has shape ", q.shape(), ", k ", k.shape(),
          ", wanted [B, N, H, D] and [B, M, H, D]");
    check(k.shape() == v.shape(), "attention: k has shape ", k.shape(), ", v ", v.shape());
    check(q.dim(0) == k.dim(0) && q.dim(2) == k.dim(2) && q.dim(3) == k.dim(3), "attention: q has shape ",
          q.shape(), ", k ", k.shape());
    check(k.numel() > 0, "attention: k has shape ", k.shape(), ", wanted at least one key");
    keys += k.dim(1);
    all.insert(all.end(), {k, v});
  }
  check_same_type("attention", all);
  check(!key_mask || key_mask.shape() == Shape{q.dim(0), keys}, "attention: key_mask has shape ",
        key_mask.shape(), " for ", keys, " keys and q ", q.shape());
  check(!key_mask || key_mask.dtype() == DType::u8, "attention: key_mask is ", key_mask.dtype(),
        ", wanted u8");
}

// True when the bf16 kernels take this work.
bool on_tensor_cores(const Tensor& q, size_t segments, double scale) {
  return q.device() == Device::cuda && q.dtype() == DType::bf16 && q.dim(3) <= 128 && scale > 0 &&
         segments <= cuda::kMaxAttentionSegments;
}

Tensors map(const Tensors& xs, Tensor (*f)(const Tensor&)) {
  Tensors ys;
  for (const Tensor& x : xs) ys.push_back(f(x));
  return ys;
}

// Keys and values read where they are; q, k and v are alone in being differentiated.
Tensor segment_attention(const Tensor& q_in, const Tensors& ks_in, const Tensors& vs_in, double scale,
                         const Tensor& mask) {
  const Tensor q = dense_rows(q_in), out = Tensor(q.shape(), q.dtype(), q.device());
  const Tensors ks = map(ks_in, dense_rows), vs = map(vs_in, dense_rows);
  const Tensor lse({q.dim(0), q.dim(2), q.dim(1)}, DType::f32, q.device());
  if constexpr (kHasCuda) cuda::attention_bf16(q, ks, vs, scale, mask, out, lse);
  Tensors inputs{q};
  inputs.insert(inputs.end(), ks.begin(), ks.end());
  inputs.insert(inputs.end(), vs.begin(), vs.end());
  const auto off_tape = [](const Tensor& x) { return x.detach(); };
  return record("attention", out, inputs,
                [=, q = q.detach(), ks = map(ks, off_tape), vs = map(vs, off_tape)](const Tensor& dout) {
                  const Tensor dq = empty_like(q);
                  const Tensors dks = map(ks, empty_like), dvs = map(vs, empty_like);
                  if constexpr (kHasCuda)
                    cuda::attention_bf16_backward(dout.contiguous(), q, ks, vs, scale, mask, out, lse, dq,
                                                  dks, dvs);
                  Tensors gradients{dq};
                  gradients.insert(gradients.end(), dks.begin(), dks.end());
                  gradients.insert(gradients.end(), dvs.begin(), dvs.end());
                  return gradients;
                });
}

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, const Tensor& key_mask) {
  return attention(q, Tensors{k}, Tensors{v}, scale, key_mask);
}

Tensor attention(const Tensor& q, const Tensors& ks, const Tensors& vs, double scale,
                 const Tensor& key_mask) {
  check_inputs(q, ks, vs, key_mask);
  const Tensor mask = key_mask ? key_mask.contiguous() : key_mask;
  if (on_tensor_cores(q, ks.size(), scale)) return segment_attention(q, ks, vs, scale, mask);
  if (ks.size() > 1) return attention(q, cat(ks, 1), cat(vs, 1), scale, mask);
  if (any_half({q}))
    return through_f32({q, ks[0], vs[0]},
                       [&](const Tensors& t) { return attention(t[0], t[1], t[2], scale, mask); });

  const Tensor qd = dense_rows(q), kd = dense_rows(ks[0]), vd = dense_rows(vs[0]);
  Tensor out(q.shape(), q.dtype(), q.device());
  Tensor lse({q.dim(0), q.dim(2), q.dim(1)}, q.dtype(), q.device());
  ON_DEVICE(q, attention(qd, kd, vd, scale, mask, out, lse));
  return record("attention", out, {qd, kd, vd},
                [=, q = qd.detach(), k = kd.detach(), v = vd.detach()](const Tensor& dout) -> Tensors {
                  Tensor dq = empty_like(q), dk = empty_like(k), dv = empty_like(v);
                  const Tensor g = dout.contiguous();
                  ON_DEVICE(q, attention_backward(g, q, k, v, scale, mask, out, lse, dq, dk, dv));
                  return {dq, dk, dv};
                });
}

namespace {

double keys_of(const Shapes& s, size_t step) {
  double keys = 0;
  for (size_t i = 1; i < s.size(); i += step) keys += double(s[i][1]);
  return keys;
}
// Shapes of queries and of keys and values in segments.
Shapes segments(int64_t queries, std::initializer_list<int64_t> keys, int64_t heads, int64_t d) {
  Shapes shapes{{1, queries, heads, d}};
  for (const int64_t m : keys) shapes.insert(shapes.end(), 2, {1, m, heads, d});
  return shapes;
}
double scale_for(const Tensor& q) { return 1 / std::sqrt(double(q.dim(3))); }
double attention_bytes(const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); }

// The weights of the last batch entry are all masked; others have random gaps before the padding, which is
// the last four fifths of long rows of keys, as of a text.
Tensor fill_mask(const Shape& shape, Rng& rng) {
  Tensor mask(shape, DType::u8);
  const int64_t keys = shape[1], real = keys > 64 ? keys / 5 : keys;
  for (int64_t j = 0; j < mask.numel(); ++j)
    mask.data<uint8_t>()[j] =
        (shape[0] == 1 || j / keys + 1 < shape[0]) && j % keys < real && rng.uniform() < 0.7;
  return mask;
}

}  // namespace

const OpCase& attention_case() {
  static const OpCase kCase = {
      .name = "attention",
      .run = [](const Tensors& in) -> Tensors { return {attention(in[0], in[1], in[2], scale_for(in[0]))}; },
      .check = {{{2, 5, 3, 7}, {2, 9, 3, 7}, {2, 9, 3, 7}},
                {{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}},
                {{1, 19, 1, 3}, {1, 1, 1, 3}, {1, 1, 1, 3}},
                {{1, 1, 2, 8}, {1, 181, 2, 8}, {1, 181, 2, 8}}},
      .bench = {{{1, 1728, 4, 32}, {1, 5184, 4, 32}, {1, 5184, 4, 32}},
                {{1, 2640, 4, 112}, {1, 9680, 4, 112}, {1, 9680, 4, 112}},
                {{1, 9680, 2, 112}, {1, 9680, 2, 112}, {1, 9680, 2, 112}}},
      .bytes = attention_bytes,
      .flops = [](const Shapes& s) { return 4.0 * double(s[0].numel()) * double(s[1][1]); },
  };
  return kCase;
}

const OpCase& attention_segments_case() {
  static const OpCase kCase = {
      .name = "attention_segments",
      .run = [](const Tensors& in) -> Tensors {
        Tensors ks, vs;
        for (size_t i = 1; i < in.size(); i += 2) {
          ks.push_back(in[i]);
          vs.push_back(in[i + 1]);
        }
        return {attention(in[0], ks, vs, scale_for(in[0]))};
      },
      .check =
          {{{2, 5, 2, 8}, {2, 7, 2, 8}, {2, 7, 2, 8}, {2, 1, 2, 8}, {2, 1, 2, 8}, {2, 4, 2, 8}, {2, 4, 2, 8}},
           {{1, 3, 1, 5}, {1, 2, 1, 5}, {1, 2, 1, 5}, {1, 6, 1, 5}, {1, 6, 1, 5}}},
      .bench = {segments(2640, {2640, 2640, 2640}, 20, 112), segments(2640, {4400, 2640, 2640}, 20, 112)},
      .bytes = attention_bytes,
      .flops = [](const Shapes& s) { return 4.0 * double(s[0].numel()) * keys_of(s, 2); },
  };
  return kCase;
}

const OpCase& attention_masked_case() {
  static const OpCase kCase = {
      .name = "attention_masked",
      .run = [](const Tensors& in) -> Tensors {
        return {attention(in[0], in[1], in[2], scale_for(in[0]), in[3])};
      },
      .check = {{{2, 3, 2, 4}, {2, 6, 2, 4}, {2, 6, 2, 4}, {2, 6}},
                {{3, 2, 1, 8}, {3, 70, 1, 8}, {3, 70, 1, 8}, {3, 70}}},
      .bench = {{{1, 2640, 20, 112}, {1, 300, 20, 112}, {1, 300, 20, 112}, {1, 300}}},
      .bytes = attention_bytes,
      .flops = [](const Shapes& s) { return 4.0 * double(s[0].numel()) * double(s[1][1]); },
      .fill = [](const Shape& shape, int i, Rng& rng,
                 DType dtype) { return i < 3 ? randn(shape, rng, dtype) : fill_mask(shape, rng); },
  };
  return kCase;
}

}  // namespace rivulet
