#include "ops/rope.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// One thread per pair of channels.
template <class T>
__global__ void rope_kernel(const T* x, int64_t stride_b, int64_t stride_n, int64_t stride_h, const Wide<T>* cos,
                            const Wide<T>* sin, Wide<T> sign, FastDiv pairs, FastDiv heads, FastDiv tokens,
                            uint32_t count, T* y) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint32_t row = pairs.div(i), j = i - row * pairs.d;
  const uint32_t token = heads.div(row), h = row - token * heads.d;
  const uint32_t b = tokens.div(token), n = token - b * tokens.d;
  const T* in = x + b * stride_b + n * stride_n + h * stride_h + 2 * j;
  const Wide<T> c = cos[size_t(n) * pairs.d + j], s = sign * sin[size_t(n) * pairs.d + j];
  const Wide<T> re = in[0], im = in[1];
  Pack<T, 2> out;
  out.v[0] = convert<T>(re * c - im * s);
  out.v[1] = convert<T>(re * s + im * c);
  store_pack(y + 2 * size_t(i), out);
}

}  // namespace

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse, Tensor& y) {
  dispatch_float(x.dtype(), "rope", [&]<class T>() {
    const int64_t count = x.numel() / 2;
    if (count == 0) return;
    check(count <= 0x7fffffff, "rope: x of shape ", x.shape(), " is too large for one launch");
    const Shape& stride = x.strides();
    launch({blocks_for(count, kThreads), kThreads}, rope_kernel<T>, pointer<T>(x), stride[0],
           stride[1], stride[2], pointer<Wide<T>>(cos), pointer<Wide<T>>(sin), inverse ? -1 : 1, FastDiv(uint32_t(x.dim(3) / 2)),
           FastDiv(uint32_t(x.dim(2))), FastDiv(uint32_t(x.dim(1))), count, pointer<T>(y));
  });
}

}  // namespace rivulet::cuda
