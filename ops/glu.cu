#include "ops/glu.h"

#include "ops/math.cuh"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// Rows of packs of N elements; a tensor's rows lie `stride` elements apart.
template <class T>
struct StridedRows {
  T* data;
  int64_t stride;
  explicit StridedRows(const Tensor& x) : data(pointer<T>(x)), stride(x.strides()[0]) {}
  template <int N>
  __device__ T* at(int64_t row, int64_t group) const {
    return data + row * stride + group * N;
  }
};

// One thread per N neighbouring channels of y; `groups` of them make a row.
template <class T, int N>
__global__ void mul_silu_kernel(StridedRows<T> a, StridedRows<T> g, FastDiv groups, uint32_t count, T* y) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint32_t row = groups.div(i), j = i - row * groups.d;
  const auto in = load_pack<T, N>(a.template at<N>(row, j)), gate = load_pack<T, N>(g.template at<N>(row, j));
  Pack<T, N> out;
#pragma unroll
  for (int k = 0; k < N; ++k) out.v[k] = convert<T>(Wide<T>(in.v[k]) * silu_of(Wide<T>(gate.v[k])));
  store_pack(y + int64_t(i) * N, out);
}

template <class T, int N>
__global__ void mul_silu_backward_kernel(const T* dy, StridedRows<T> a, StridedRows<T> g, FastDiv groups,
                                         uint32_t count, StridedRows<T> da, StridedRows<T> dg) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint32_t row = groups.div(i), j = i - row * groups.d;
  const auto in = load_pack<T, N>(a.template at<N>(row, j)), gate = load_pack<T, N>(g.template at<N>(row, j)),
             up = load_pack<T, N>(dy + int64_t(i) * N);
  Pack<T, N> to_a, to_g;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const Wide<T> x = in.v[k], z = gate.v[k], d = up.v[k], s = sigmoid_of(z);
    to_a.v[k] = convert<T>(d * z * s);
    to_g.v[k] = convert<T>(d * x * s * (1 + z * (1 - s)));
  }
  store_pack(da.template at<N>(row, j), to_a);
  store_pack(dg.template at<N>(row, j), to_g);
}

// f.template operator()<T, N>(groups, count): whole 16-byte packs where rows and addresses allow them.
template <class F>
void over_packs(const Tensor& dense, const Tensors& strided, F&& f) {
  if (dense.numel() == 0) return;
  dispatch_float(dense.dtype(), "glu_silu", [&]<class T>() {
    bool packed = dense.dim(-1) % kPack<T> == 0 && is_aligned(dense.raw(), 16);
    for (const Tensor& t : strided)
      packed = packed && t.strides()[0] % kPack<T> == 0 && is_aligned(t.raw(), 16);
    const int64_t n = packed ? kPack<T> : 1, count = dense.numel() / n;
    check(count <= 0x7fffffff, "glu_silu: rows of shape ", dense.shape(), " are too many for one launch");
    const FastDiv groups{uint32_t(dense.dim(-1) / n)};
    packed ? f.template operator()<T, kPack<T>>(groups, count) : f.template operator()<T, 1>(groups, count);
  });
}

}  // namespace

void mul_silu(const Tensor& a, const Tensor& g, Tensor& y) {
  over_packs(y, {a, g}, [&]<class T, int N>(FastDiv groups, int64_t count) {
    launch({blocks_for(count, kThreads), kThreads}, mul_silu_kernel<T, N>, StridedRows<T>(a),
           StridedRows<T>(g), groups, count, pointer<T>(y));
  });
}

void mul_silu_backward(const Tensor& dy, const Tensor& a, const Tensor& g, const Tensor& da,
                       const Tensor& dg) {
  over_packs(dy, {a, g, da, dg}, [&]<class T, int N>(FastDiv groups, int64_t count) {
    launch({blocks_for(count, kThreads), kThreads}, mul_silu_backward_kernel<T, N>, pointer<T>(dy),
           StridedRows<T>(a), StridedRows<T>(g), groups, count, StridedRows<T>(da), StridedRows<T>(dg));
  });
}

}  // namespace rivulet::cuda
