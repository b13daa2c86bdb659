#include "ops/reduce.h"

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

template <class W>
constexpr W kInfinity = W(__builtin_huge_val());

template <int kWarps, class T>
__device__ Wide<T> largest(const T* x, int64_t c) {
  Wide<T> top = -kInfinity<Wide<T>>;
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps) top = Larger{}(top, Wide<T>(x[i]));
  return block_max<kWarps>(top);
}

// The sum of e^(x - top). A row of -inf alone is shifted by 0, so it sums to 0, not to NaN.
template <class W>
__device__ W shift_of(W top) {
  return top == -kInfinity<W> ? W(0) : top;
}
template <int kWarps, class T>
__device__ Wide<T> exp_sum(const T* x, Wide<T> shift, int64_t c) {
  Wide<T> total = 0;
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps) total += ::exp(Wide<T>(x[i]) - shift);
  return block_sum<kWarps>(total);
}

template <int kWarps, class T>
__global__ void row_max_kernel(const T* x, T* y, int64_t rows, int64_t c) {
  const int64_t r = row_index<kWarps>();
  if (r >= rows) return;
  const Wide<T> top = largest<kWarps>(x + r * c, c);
  if (threadIdx.x == 0) y[r] = convert<T>(top);
}

template <int kWarps, class T>
__global__ void max_backward_kernel(const T* g, const T* x, const T* y, T* dx, int64_t rows, int64_t c) {
  const int64_t r = row_index<kWarps>();
  if (r >= rows) return;
  const Wide<T> top = y[r];
  int ties = 0;
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps) ties += Wide<T>(x[r * c + i]) == top;
  const Wide<T> share = Wide<T>(g[r]) / Wide<T>(block_sum<kWarps>(ties));
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps)
    dx[r * c + i] = convert<T>(Wide<T>(x[r * c + i]) == top ? share : Wide<T>(0));
}

template <int kWarps, class T>
__global__ void softmax_kernel(const T* x, T* y, int64_t rows, int64_t c) {
  const int64_t r = row_index<kWarps>();
  if (r >= rows) return;
  const Wide<T> shift = shift_of(largest<kWarps>(x + r * c, c));
  const Wide<T> scale = Wide<T>(1) / exp_sum<kWarps>(x + r * c, shift, c);
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps)
    y[r * c + i] = convert<T>(::exp(Wide<T>(x[r * c + i]) - shift) * scale);
}

template <int kWarps, class T>
__global__ void softmax_backward_kernel(const T* g, const T* y, T* dx, int64_t rows, int64_t c) {
  const int64_t r = row_index<kWarps>();
  if (r >= rows) return;
  Wide<T> dot = 0;
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps) dot += Wide<T>(g[r * c + i]) * Wide<T>(y[r * c + i]);
  dot = block_sum<kWarps>(dot);
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps)
    dx[r * c + i] = convert<T>(Wide<T>(y[r * c + i]) * (Wide<T>(g[r * c + i]) - dot));
}

template <int kWarps, class T>
__global__ void logsumexp_kernel(const T* x, T* y, int64_t rows, int64_t c) {
  const int64_t r = row_index<kWarps>();
  if (r >= rows) return;
  const Wide<T> top = largest<kWarps>(x + r * c, c);
  const Wide<T> total = exp_sum<kWarps>(x + r * c, shift_of(top), c);
  if (threadIdx.x == 0) y[r] = convert<T>(top == -kInfinity<Wide<T>> ? top : top + ::log(total));
}

template <int kWarps, class T>
__global__ void logsumexp_backward_kernel(const T* g, const T* x, const T* y, T* dx, int64_t rows,
                                          int64_t c) {
  const int64_t r = row_index<kWarps>();
  if (r >= rows) return;
  const Wide<T> up = g[r], lse = y[r];
  for (int64_t i = threadIdx.x; i < c; i += 32 * kWarps)
    dx[r * c + i] = convert<T>(up * ::exp(Wide<T>(x[r * c + i]) - lse));
}

// f.template operator()<T, kWarps>(launch, rows, c) for the rows of the last dim of `like`.
template <class F>
void over_rows(const Tensor& like, const char* who, F&& f) {
  const int64_t c = like.dim(-1);
  if (c == 0) return;
  dispatch_float(like.dtype(), who, [&]<class T>() {
    const int64_t rows = like.numel() / c;
    launch_rows(rows, c, [&]<int kWarps>(dim3 grid, dim3 block) {
      f.template operator()<T, kWarps>(Launch(grid, block), rows, c);
    });
  });
}

}  // namespace

void row_max(const Tensor& x, Tensor& y) {
  over_rows(x, "max", [&]<class T, int kWarps>(const Launch& l, int64_t rows, int64_t c) {
    launch(l, row_max_kernel<kWarps, T>, pointer<T>(x), pointer<T>(y), rows, c);
  });
}

void max_backward(const Tensor& g, const Tensor& x, const Tensor& y, Tensor& dx) {
  over_rows(x, "max", [&]<class T, int kWarps>(const Launch& l, int64_t rows, int64_t c) {
    launch(l, max_backward_kernel<kWarps, T>, pointer<T>(g), pointer<T>(x), pointer<T>(y), pointer<T>(dx),
           rows, c);
  });
}

void softmax(const Tensor& x, Tensor& y) {
  over_rows(x, "softmax", [&]<class T, int kWarps>(const Launch& l, int64_t rows, int64_t c) {
    launch(l, softmax_kernel<kWarps, T>, pointer<T>(x), pointer<T>(y), rows, c);
  });
}

void softmax_backward(const Tensor& g, const Tensor& y, Tensor& dx) {
  over_rows(y, "softmax", [&]<class T, int kWarps>(const Launch& l, int64_t rows, int64_t c) {
    launch(l, softmax_backward_kernel<kWarps, T>, pointer<T>(g), pointer<T>(y), pointer<T>(dx), rows, c);
  });
}

void logsumexp(const Tensor& x, Tensor& y) {
  over_rows(x, "logsumexp", [&]<class T, int kWarps>(const Launch& l, int64_t rows, int64_t c) {
    launch(l, logsumexp_kernel<kWarps, T>, pointer<T>(x), pointer<T>(y), rows, c);
  });
}

void logsumexp_backward(const Tensor& g, const Tensor& x, const Tensor& y, Tensor& dx) {
  over_rows(x, "logsumexp", [&]<class T, int kWarps>(const Launch& l, int64_t rows, int64_t c) {
    launch(l, logsumexp_backward_kernel<kWarps, T>, pointer<T>(g), pointer<T>(x), pointer<T>(y),
           pointer<T>(dx), rows, c);
  });
}

}  // namespace rivulet::cuda
