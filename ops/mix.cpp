#include "ops/mix.h"

#include "ops/half.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {
namespace {

constexpr int64_t kRun = 512;  // places handled together: their operands and sums stay in the L1 cache

// y[n] = (or +=) a[n] * b[n] over n places.
template <class T>
void multiply(const T* a, const T* b, T* y, int64_t n, bool add) {
  if (add) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] += a[i] * b[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = a[i] * b[i];
  }
}

// Calls f(b, i, first, count) for every batch entry, every i < outer and every run of places.
template <class F>
void for_runs(int64_t B, int64_t outer, int64_t N, F&& f) {
  const int64_t runs = (N + kRun - 1) / kRun;
  parallel_for(B * outer * runs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t first = j % runs * kRun;
      f(j / runs / outer, j / runs % outer, first, std::min(kRun, N - first));
    }
  });
}

}  // namespace

void mix(const Tensor& a, const Tensor& w, Tensor& y) {
  const int64_t B = a.dim(0), F = a.dim(1), K = a.dim(2), N = a.dim(3), C = w.dim(2);
  dispatch_real(y.dtype(), "mix", [&]<class T>() {
    for_runs(B, F, N, [&](int64_t b, int64_t f, int64_t n, int64_t count) {
      const T *in = a.data<T>() + (b * F + f) * K * N + n, *weight = w.data<T>() + b * K * C * N + n;
      T* out = y.data<T>() + (b * F + f) * C * N + n;
      for (int64_t k = 0; k < K; ++k)
        for (int64_t c = 0; c < C; ++c)
          multiply(in + k * N, weight + (k * C + c) * N, out + c * N, count, k > 0);
    });
  });
}

void mix_backward(const Tensor& dy, const Tensor& a, const Tensor& w, Tensor& da, Tensor& dw) {
  const int64_t B = a.dim(0), F = a.dim(1), K = a.dim(2), N = a.dim(3), C = w.dim(2);
  dispatch_real(dy.dtype(), "mix", [&]<class T>() {
    for_runs(B, K, N, [&](int64_t b, int64_t k, int64_t n, int64_t count) {
      for (int64_t f = 0; f < F; ++f)
        for (int64_t c = 0; c < C; ++c)
          multiply(a.data<T>() + ((b * F + f) * K + k) * N + n, dy.data<T>() + ((b * F + f) * C + c) * N + n,
                   dw.data<T>() + ((b * K + k) * C + c) * N + n, count, f > 0);
    });
    if (!da.defined()) return;
    for_runs(B, F * K, N, [&](int64_t b, int64_t fk, int64_t n, int64_t count) {
      const int64_t f = fk / K, k = fk % K;
      for (int64_t c = 0; c < C; ++c)
        multiply(w.data<T>() + ((b * K + k) * C + c) * N + n, dy.data<T>() + ((b * F + f) * C + c) * N + n,
                 da.data<T>() + (b * F * K + fk) * N + n, count, c > 0);
    });
  });
}

}  // namespace cpu

Tensor mix(const Tensor& a, const Tensor& w) {
  check(
      a.dims() == 4 && w.dims() == 4 && a.dim(0) == w.dim(0) && a.dim(2) == w.dim(1) && a.dim(3) == w.dim(3),
      "mix: a has shape ", a.shape(), ", w ", w.shape(), "; [B, F, K, N] and [B, K, C, N] are needed");
  if (needs_f32({a, w})) return through_f32({a, w}, [](const Tensors& t) { return mix(t[0], t[1]); });
  check_same_type("mix", {a, w});
  const Tensor in = a.detach().contiguous(), weight = w.detach().contiguous();
  Tensor y({a.dim(0), a.dim(1), w.dim(2), a.dim(3)}, a.dtype(), a.device());
  ON_DEVICE(y, mix(in, weight, y));
  return record("mix", y, {a, w}, [=, need_a = a.requires_grad()](const Tensor& dy) -> Tensors {
    const Tensor up = dy.contiguous();
    Tensor da = need_a ? empty_like(in) : Tensor(), dw = empty_like(weight);
    ON_DEVICE(up, mix_backward(up, in, weight, da, dw));
    return {da, dw};
  });
}

const OpCase& mix_case() {
  static const OpCase kCase = {
      .name = "mix",
      .run = [](const Tensors& in) -> Tensors { return {mix(in[0], in[1])}; },
      .check = {{{2, 3, 4, 7}, {2, 4, 3, 7}}, {{1, 1, 1, 1}, {1, 1, 1, 1}}, {{1, 2, 5, 33}, {1, 5, 1, 33}}},
      .bench = {{{1, 64, 12, 1728}, {1, 12, 3, 1728}}, {{12, 64, 12, 1728}, {12, 12, 3, 1728}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + 4.0 * double(s[0].numel() / s[0][2] * s[1][2]); },
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel()) * double(s[1][2]); },
  };
  return kCase;
}

}  // namespace rivulet
