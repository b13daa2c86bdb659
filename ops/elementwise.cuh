// The engine of ops that work element by element on the GPU: one kernel that walks broadcast and strided
// operands, in packs of 16 bytes where it can, and hands them to a function object.
//
//   for_each<T>(y, f, operand<T>(a, y), operand<T>(b, y));
#pragma once

#include <utility>

#include "tensor/cuda.cuh"

namespace rivulet::cuda {

// How the elements of a pack lie in an operand: all the same one, neighbours moved by one load, or `step`
// elements apart.
enum class Lane : int { repeated, packed, apart };

// K operands along the packs of a dense result.
template <int K>
struct Walk {
  StridedIndex<K> index;
  Lane lane[K];
  int64_t step[K];
};

template <int P, class X>
__device__ Pack<X, P> gather(const X* x, Lane lane, int64_t step) {
  if (P > 1 && lane == Lane::packed) return load_pack<X, P>(x);
  Pack<X, P> out;
#pragma unroll
  for (int i = 0; i < P; ++i) out.v[i] = x[lane == Lane::repeated ? 0 : i * step];
  return out;
}

template <int P, class F, class Y, class... X>
__global__ void elementwise(Y* y, uint32_t packs, F f, Walk<sizeof...(X)> walk, const X*... x) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  int64_t at[sizeof...(X)];
  walk.index.at(i, at);
  [&]<size_t... k>(std::index_sequence<k...>) {
    store_pack<Y, P>(y + int64_t(i) * P, f(gather<P>(x + at[k], walk.lane[k], walk.step[k])...));
  }
  (std::index_sequence_for<X...>{});
}

template <class X>
struct Operand {
  const X* data;
  Shape strides;  // in the shape of the result
};
template <class X>
Operand<X> operand(const Tensor& x, const Tensor& y) {
  return {pointer<X>(x), broadcast_strides(x.shape(), x.strides(), y.shape())};
}

template <int P, class F, class Y, class... X>
void launch_packs(Y* y, StridedLoop<sizeof...(X)> loop, F f, const Operand<X>&... x) {
  constexpr int K = sizeof...(X);
  const int inner = loop.shape.size() - 1;
  std::array<Lane, K> lane;
  std::array<int64_t, K> step;
  const std::array<bool, K> aligned{is_aligned(x.data, P * sizeof(X))...};
  loop.shape[inner] /= P;
  for (int k = 0; k < K; ++k) {
    step[k] = loop.strides[k][inner];
    loop.strides[k][inner] *= P;
    bool packs = step[k] == 1 && aligned[k];
    for (int d = 0; d < inner; ++d) packs = packs && loop.strides[k][d] % P == 0;
    lane[k] = step[k] == 0 ? Lane::repeated : packs ? Lane::packed : Lane::apart;
  }
  Walk<K> walk{StridedIndex<K>(loop), {}, {}};
  for (int k = 0; k < K; ++k) {
    walk.lane[k] = lane[k];
    walk.step[k] = step[k];
  }
  const int64_t packs = loop.shape.numel();
  launch({blocks_for(packs, kThreads), kThreads}, elementwise<P, F, Y, X...>, y, uint32_t(packs), f, walk,
         x.data...);
}

// y = f(x...) over all of y, which is dense. F takes and returns packs of any length.
template <class Y, class F, class... X>
void for_each(const Tensor& y, F f, const Operand<X>&... x) {
  if (y.numel() == 0) return;
  constexpr int P = kPack<Y>;
  const StridedLoop<sizeof...(X)> loop(y.shape(), {x.strides...});
  Y* out = pointer<Y>(y);
  if (loop.shape[loop.shape.size() - 1] % P == 0 && is_aligned(out, 16))
    launch_packs<P>(out, loop, f, x...);
  else
    launch_packs<1>(out, loop, f, x...);
}

}  // namespace rivulet::cuda
