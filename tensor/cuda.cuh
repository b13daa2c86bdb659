// What every .cu file stands on: the stream, checks, launches, element types, strided indices and sums
// within a block. Kernels are launched through launch() so that a failure names its file and line.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <source_location>

#include "tensor/cuda.h"
#include "tensor/kernels.h"
#include "tensor/strided.h"

namespace rivulet {

void cuda_check(cudaError_t error, std::source_location where = std::source_location::current());

namespace cuda {

// The one stream of this process. All kernels, copies and allocations are ordered by it.
cudaStream_t stream();

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  std::source_location where;
  Launch(dim3 grid, dim3 block, size_t shared_bytes = 0,
         std::source_location where = std::source_location::current())
      : grid(grid), block(block), shared_bytes(shared_bytes), where(where) {}
};

// launch({blocks, threads}, kernel<float>, arguments...). A grid without blocks is no work, not an error.
template <class... P, class... A>
void launch(const Launch& l, void (*kernel)(P...), A&&... arguments) {
  if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0) return;
  kernel<<<l.grid, l.block, l.shared_bytes, stream()>>>(static_cast<P>(arguments)...);
  cuda_check(cudaGetLastError(), l.where);
}

constexpr int kThreads = 256;  // of a block, where nothing speaks for another number
inline unsigned blocks_for(int64_t n, int64_t per_block) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  check(blocks <= 0x7fffffff, "cuda: ", n, " elements need too many blocks");
  return unsigned(blocks);
}

// --- Element types -------------------------------------------------------------------------------------
// The device's own type for a library type: the same bits, with arithmetic.
template <class T>
struct OnDevice {
  using type = T;
};
template <>
struct OnDevice<bf16> {
  using type = __nv_bfloat16;
};
template <>
struct OnDevice<f16> {
  using type = __half;
};

// The first element, as the device type D. The caller has dispatched on the dtype.
template <class D>
D* pointer(const Tensor& t) {
  return t.defined() ? static_cast<D*>(t.raw()) : nullptr;
}

// Calls f.template operator()<D>() with float, double or __nv_bfloat16: the types ops compute on.
template <class F>
decltype(auto) dispatch_float(DType t, const char* who, F&& f) {
  if (t == DType::f32) return f.template operator()<float>();
  if (t == DType::bf16) return f.template operator()<__nv_bfloat16>();
  if (t == DType::f64) return f.template operator()<double>();
  fail(who, ": the GPU computes in f32, f64 and bf16, got ", t);
}

template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;  // both 2-byte types are floating
// What values are computed and summed in.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class To, class From>
__host__ __device__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (kIsHalf<To> || kIsHalf<From>)
    return static_cast<To>(static_cast<float>(x));
  else
    return static_cast<To>(x);
}

// N neighbours moved by one instruction.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
template <class T>
constexpr int kPack = 16 / sizeof(T);
template <class T, int N = kPack<T>>
__device__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <class T, int N = kPack<T>>
__device__ void store_pack(T* p, const Pack<T, N>& x) {
  *reinterpret_cast<Pack<T, N>*>(p) = x;
}
inline bool is_aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// --- Strided indices -----------------------------------------------------------------------------------
// n / d by a multiplication, for n < 2^31 (Granlund and Montgomery 1994).
struct FastDiv {
  uint32_t d = 1, magic = 1, shift = 0;
  FastDiv() = default;
  explicit FastDiv(uint32_t divisor) : d(divisor) {
    while ((uint64_t(1) << shift) < d) ++shift;
    magic = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - d)) / d + 1);
  }
  __device__ uint32_t div(uint32_t n) const { return (__umulhi(n, magic) + n) >> shift; }
};

// Where element i of a row-major walk lies in each of K strided operands.
template <int K>
struct StridedIndex {
  int dims = 0;
  FastDiv shape[kMaxDims];
  int64_t strides[K][kMaxDims] = {};

  explicit StridedIndex(const StridedLoop<K>& loop) : dims(loop.shape.size()) {
    check(loop.shape.numel() <= 0x7fffffff, "cuda: a strided walk over shape ", loop.shape, " is too long");
    for (int d = 0; d < dims; ++d) {
      shape[d] = FastDiv(uint32_t(std::max<int64_t>(loop.shape[d], 1)));
      for (int k = 0; k < K; ++k) strides[k][d] = loop.strides[k][d];
    }
  }
  __device__ void at(uint32_t i, int64_t (&offset)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) offset[k] = 0;
#pragma unroll 1
    for (int d = dims - 1; d > 0; --d) {
      const uint32_t q = shape[d].div(i), r = i - q * shape[d].d;
#pragma unroll
      for (int k = 0; k < K; ++k) offset[k] += r * strides[k][d];
      i = q;
    }
#pragma unroll
    for (int k = 0; k < K; ++k) offset[k] += i * strides[k][0];
  }
};

// --- Sums and maxima over a warp or a block, in the same order in every run ------------------------------
struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// The larger; NaN if either is one.
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

template <class T, class Op>
__device__ T warp_reduce(T x, Op op) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// Over a block of `kWarps` warps along x, the result in every thread. All threads of the warp (kWarps = 1)
// or of the block must call it.
template <int kWarps, class T, class Op>
__device__ T block_reduce(T x, Op op) {
  x = warp_reduce(x, op);
  if constexpr (kWarps == 1) return x;
  __shared__ T parts[kWarps];
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = parts[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) x = op(x, parts[w]);
  __syncthreads();  // a following call may write parts again
  return x;
}
template <int kWarps, class T>
__device__ T block_sum(T x) {
  return block_reduce<kWarps>(x, Plus{});
}
template <int kWarps, class T>
__device__ T block_max(T x) {
  return block_reduce<kWarps>(x, Larger{});
}

// Work on the rows of a dense matrix: a warp for each short row, a block of 8 warps for each long one.
constexpr int64_t kShortRow = 1024;
constexpr int kRowWarps = 8;
// The row of this warp or block, for a launch by launch_rows.
template <int kWarps>
__device__ int64_t row_index() {
  return kWarps == 1 ? int64_t(blockIdx.x) * blockDim.y + threadIdx.y : blockIdx.x;
}
// f.template operator()<kWarps>(grid, block) with the launch for rows of c elements.
template <class F>
void launch_rows(int64_t rows, int64_t c, F&& f) {
  if (rows == 0) return;
  if (c <= kShortRow)
    f.template operator()<1>(dim3(blocks_for(rows, kRowWarps)), dim3(32, kRowWarps));
  else
    f.template operator()<kRowWarps>(dim3(blocks_for(rows, 1)), dim3(32 * kRowWarps));
}

}  // namespace cuda
}  // namespace rivulet
