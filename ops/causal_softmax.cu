#include "ops/causal_softmax.h"

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kRowsOfBlock = kThreads / 32;

template <class T>
struct Scores {
  const T* s;
  const uint8_t* mask;  // null: every key counts
  int64_t rows, n, rows_per_entry, window;
  T scale, cap;

  // The capped score of key j in a row, -inf where it is hidden.
  __device__ T at(int64_t row, int64_t j) const {
    if (mask && mask[row / rows_per_entry * n + j] == 0) return T(-INFINITY);
    const T z = scale * s[row * n + j];
    return cap > 0 ? cap * ::tanh(z / cap) : z;
  }
};

// A warp per row.
template <class T>
__global__ void __launch_bounds__(kThreads) causal_softmax_fwd(Scores<T> x, T* p) {
  const int64_t row = int64_t(blockIdx.x) * kRowsOfBlock + threadIdx.x / 32, query = row % x.n;
  const int lane = int(threadIdx.x) % 32;
  if (row >= x.rows) return;
  const int64_t first = x.window > 0 ? max(int64_t(0), query + 1 - x.window) : 0;
  T top = T(-INFINITY), sum = 0;
  for (int64_t j = first + lane; j <= query; j += 32) top = max(top, x.at(row, j));
  top = warp_reduce(top, Larger{});
  if (top == T(-INFINITY)) top = 0;
  for (int64_t j = first + lane; j <= query; j += 32) sum += ::exp(x.at(row, j) - top);
  sum = warp_reduce(sum, Plus{});
  const T inverse = sum > 0 ? 1 / sum : T(0);
  for (int64_t j = lane; j < x.n; j += 32)
    p[row * x.n + j] = j < first || j > query ? T(0) : ::exp(x.at(row, j) - top) * inverse;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    causal_softmax_bwd(int64_t rows, int64_t n, T scale, T cap, const T* dp, const T* s, const T* p, T* ds) {
  const int64_t row = int64_t(blockIdx.x) * kRowsOfBlock + threadIdx.x / 32;
  const int lane = int(threadIdx.x) % 32;
  if (row >= rows) return;
  T dot = 0;
  for (int64_t j = lane; j < n; j += 32) dot += dp[row * n + j] * p[row * n + j];
  dot = warp_reduce(dot, Plus{});
  for (int64_t j = lane; j < n; j += 32) {
    const int64_t at = row * n + j;
    T slope = scale;
    if (s) {
      const T t = ::tanh(scale * s[at] / cap);
      slope *= 1 - t * t;
    }
    ds[at] = slope * p[at] * (dp[at] - dot);
  }
}

}  // namespace

void causal_softmax(const Tensor& s, const CausalSoftmax& o, const Tensor& key_mask, Tensor& p) {
  if (s.numel() == 0) return;
  dispatch_real(s.dtype(), "causal_softmax", [&]<class T>() {
    const int64_t n = s.dim(3), rows = s.numel() / n;
    const Scores<T> x{s.data<T>(), pointer<uint8_t>(key_mask), rows, n, s.dim(1) * n, o.window, T(o.scale),
                      T(o.cap)};
    launch({blocks_for(rows, kRowsOfBlock), kThreads}, causal_softmax_fwd<T>, x, p.data<T>());
  });
}

void causal_softmax_backward(const Tensor& dp, const Tensor& s, const Tensor& p, const CausalSoftmax& o,
                             Tensor& ds) {
  if (p.numel() == 0) return;
  dispatch_real(p.dtype(), "causal_softmax", [&]<class T>() {
    const int64_t n = p.dim(3), rows = p.numel() / n;
    launch({blocks_for(rows, kRowsOfBlock), kThreads}, causal_softmax_bwd<T>, rows, n, T(o.scale), T(o.cap),
           dp.data<T>(), s ? s.data<T>() : nullptr, p.data<T>(), ds.data<T>());
  });
}

}  // namespace rivulet::cuda
