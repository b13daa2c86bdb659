// A tile of a matrix product, C[kSize, kSize] += A B', computed by the 64 threads of a block. A and B are
// operands: small functions (row, depth) -> value that may gather, weigh or pad what they read. The sum over
// the depth runs in order, so a result never depends on the launch.
#pragma once

#include "tensor/cuda.cuh"

namespace rivulet::cuda {

constexpr int kTileThreads = 64, kTileDepth = 16;

// Rows and columns of a tile. f64 accumulators of the larger one do not fit in the registers.
template <class T>
int tile_size(int64_t rows_or_cols) {
  return sizeof(T) == 4 && rows_or_cols > 32 ? 64 : 32;
}
// Calls f.template operator()<T, kSize>() with the tile size of T and n.
template <class T, class F>
void dispatch_tile(int64_t n, F&& f) {
  if constexpr (sizeof(T) == 4)
    if (tile_size<T>(n) == 64) return f.template operator()<T, 64>();
  f.template operator()<T, 32>();
}

// A strided matrix, zero outside. kDenseDepth: neighbours along the depth are neighbours in memory,
// otherwise neighbouring rows are.
template <class T, bool kDenseDepth>
struct Operand {
  static constexpr bool dense_depth = kDenseDepth;
  const T* p;
  int64_t stride;
  int rows, depth;
  __device__ T operator()(int row, int k) const {
    if (row >= rows || k >= depth) return T(0);
    return kDenseDepth ? p[row * stride + k] : p[k * stride + row];
  }
};

// Which (row, depth) a thread fetches as its l-th value of a slab: neighbouring threads, neighbouring memory.
template <int kSize, bool kDenseDepth>
__device__ int2 slab_place(int l) {
  const int i = l * kTileThreads + int(threadIdx.x);
  return kDenseDepth ? make_int2(i / kTileDepth, i % kTileDepth) : make_int2(i % kSize, i / kSize);
}

// The tile row (or column) of accumulator i of the thread at `t` of 8.
__device__ inline int tile_place(int t, int i) { return t * 4 + i % 4 + i / 4 * 32; }

// Every thread of the block must call it, with the same depth.
template <class T, int kSize, class A, class B>
__device__ void tile_product(int depth, const A& a, const B& b, T (&acc)[kSize / 8][kSize / 8]) {
  constexpr int kMicro = kSize / 8, kLoads = kSize * kTileDepth / kTileThreads;
  __shared__ alignas(16) T sa[kTileDepth][kSize + 4];
  __shared__ alignas(16) T sb[kTileDepth][kSize + 4];
  const int ty = int(threadIdx.x) / 8, tx = int(threadIdx.x) % 8;
  T next_a[kLoads], next_b[kLoads];
  const auto fetch = [&](int k0) {
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int2 pa = slab_place<kSize, A::dense_depth>(l), pb = slab_place<kSize, B::dense_depth>(l);
      next_a[l] = a(pa.x, k0 + pa.y);
      next_b[l] = b(pb.x, k0 + pb.y);
    }
  };
  fetch(0);
  for (int k0 = 0; k0 < depth; k0 += kTileDepth) {
    __syncthreads();  // the slab before has been read by all
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int2 pa = slab_place<kSize, A::dense_depth>(l), pb = slab_place<kSize, B::dense_depth>(l);
      sa[pa.y][pa.x] = next_a[l];
      sb[pb.y][pb.x] = next_b[l];
    }
    __syncthreads();
    if (k0 + kTileDepth < depth) fetch(k0 + kTileDepth);
#pragma unroll 4
    for (int k = 0; k < kTileDepth; ++k) {
      T fa[kMicro], fb[kMicro];
#pragma unroll
      for (int i = 0; i < kMicro; ++i) {
        fa[i] = sa[k][tile_place(ty, i)];
        fb[i] = sb[k][tile_place(tx, i)];
      }
#pragma unroll
      for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) acc[i][j] += fa[i] * fb[j];
    }
  }
}

// f(row, column, value) for every result of this thread; rows and columns may lie outside the matrix.
template <int kSize, class T, class F>
__device__ void for_each_result(const T (&acc)[kSize / 8][kSize / 8], F&& f) {
  const int ty = int(threadIdx.x) / 8, tx = int(threadIdx.x) % 8;
#pragma unroll
  for (int i = 0; i < kSize / 8; ++i)
#pragma unroll
    for (int j = 0; j < kSize / 8; ++j) f(tile_place(ty, i), tile_place(tx, j), acc[i][j]);
}

}  // namespace rivulet::cuda
