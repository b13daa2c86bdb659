#include "ops/glu.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

template <class T>
__device__ T sigmoid_of(T x) {
  return T(1) / (T(1) + exp(-x));
}

// One thread per N neighbouring channels of y; `groups` of them make a row.
template <class T, int N>
__global__ void glu_silu_kernel(const T* x, FastDiv groups, uint32_t count, T* y) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t c = int64_t(groups.d) * N, row = groups.div(i);
  const T* in = x + (row * groups.d + i) * N;  // rows of x are twice as long
  const auto a = load_pack<T, N>(in), g = load_pack<T, N>(in + c);
  Pack<T, N> out;
#pragma unroll
  for (int k = 0; k < N; ++k) out.v[k] = a.v[k] * g.v[k] * sigmoid_of(g.v[k]);
  store_pack(y + int64_t(i) * N, out);
}

template <class T, int N>
__global__ void glu_silu_backward_kernel(const T* dy, const T* x, FastDiv groups, uint32_t count, T* dx) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t c = int64_t(groups.d) * N, row = groups.div(i), at = (row * groups.d + i) * N;
  const auto a = load_pack<T, N>(x + at), g = load_pack<T, N>(x + at + c),
             up = load_pack<T, N>(dy + int64_t(i) * N);
  Pack<T, N> da, dg;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const T s = sigmoid_of(g.v[k]);
    da.v[k] = up.v[k] * g.v[k] * s;
    dg.v[k] = up.v[k] * a.v[k] * s * (T(1) + g.v[k] * (T(1) - s));
  }
  store_pack(dx + at, da);
  store_pack(dx + at + c, dg);
}

// f.template operator()<N>(groups, count): whole 16-byte packs where the row length and addresses allow it.
template <class T, class F>
void dispatch_pack(const Tensor& small, const Tensor& x, const Tensor* dx, F&& f) {
  const int64_t c = small.dim(-1);
  const bool packed = c % kPack<T> == 0 && is_aligned(small.raw(), 16) && is_aligned(x.raw(), 16) &&
                      (dx == nullptr || is_aligned(dx->raw(), 16));
  const int64_t n = packed ? kPack<T> : 1, count = small.numel() / n;
  check(count <= 0x7fffffff, "glu_silu: x of shape ", x.shape(), " is too large for one launch");
  const FastDiv groups{uint32_t(c / n)};
  packed ? f.template operator()<kPack<T>>(groups, count) : f.template operator()<1>(groups, count);
}

}  // namespace

void glu_silu(const Tensor& x, Tensor& y) {
  if (y.numel() == 0) return;
  dispatch_real(x.dtype(), "glu_silu", [&]<class T>() {
    dispatch_pack<T>(y, x, nullptr, [&]<int N>(FastDiv groups, int64_t count) {
      launch({blocks_for(count, kThreads), kThreads}, glu_silu_kernel<T, N>, x.data<T>(), groups, count,
             y.data<T>());
    });
  });
}

void glu_silu_backward(const Tensor& dy, const Tensor& x, Tensor& dx) {
  if (dy.numel() == 0) return;
  dispatch_real(x.dtype(), "glu_silu", [&]<class T>() {
    dispatch_pack<T>(dy, x, &dx, [&]<int N>(FastDiv groups, int64_t count) {
      launch({blocks_for(count, kThreads), kThreads}, glu_silu_backward_kernel<T, N>, dy.data<T>(),
             x.data<T>(), groups, count, dx.data<T>());
    });
  });
}

}  // namespace rivulet::cuda
