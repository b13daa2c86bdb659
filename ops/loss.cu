#include "ops/loss.h"

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

template <class T>
__device__ T value_of(LossOp op, T d, T eps) {
  if (op == LossOp::square) return d * d;
  if (op == LossOp::absolute) return ::fabs(d);
  return ::sqrt(d * d + eps * eps);
}
template <class T>
__device__ T slope_of(LossOp op, T d, T eps) {
  if (op == LossOp::square) return T(2) * d;
  if (op == LossOp::absolute) return T(d > T(0)) - T(d < T(0));
  return d / ::sqrt(d * d + eps * eps);
}

// One f64 sum per block; then one block adds those and divides.
template <class T>
__global__ void partial_loss(LossOp op, const T* a, const T* b, const T* mask, int64_t n, T eps,
                             double* partial) {
  double sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    sum += double((mask ? mask[i] : T(1)) * value_of(op, a[i] - b[i], eps));
  sum = block_sum<kThreads / 32>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void total_loss(const double* partial, int n, double divisor, T* y) {
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) sum += partial[i];
  sum = block_sum<kThreads / 32>(sum);
  if (threadIdx.x == 0) *y = T(sum / divisor);
}

template <class T>
__global__ void loss_slope(LossOp op, const T* g, const T* a, const T* b, const T* mask, int64_t n, T eps,
                           double scale, T* da) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const T factor = T(*g * scale);
  da[i] = factor * (mask ? mask[i] : T(1)) * slope_of(op, a[i] - b[i], eps);
}

}  // namespace

void loss(LossOp op, const Tensor& a, const Tensor& b, const Tensor& mask, double eps, double divisor,
          Tensor& y) {
  const int64_t n = a.numel();
  const int blocks = int(std::min<int64_t>((n + 4 * kThreads - 1) / (4 * kThreads), 1024));
  const Tensor partial({blocks}, DType::f64, Device::cuda);
  dispatch_real(a.dtype(), "loss", [&]<class T>() {
    launch({unsigned(blocks), kThreads}, partial_loss<T>, op, pointer<T>(a), pointer<T>(b), pointer<T>(mask),
           n, eps, pointer<double>(partial));
    launch({1, kThreads}, total_loss<T>, pointer<double>(partial), blocks, divisor, pointer<T>(y));
  });
}

void loss_backward(LossOp op, const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& mask,
                   double eps, double scale, Tensor& da) {
  const int64_t n = a.numel();
  dispatch_real(a.dtype(), "loss", [&]<class T>() {
    launch({blocks_for(n, kThreads), kThreads}, loss_slope<T>, op, pointer<T>(g), pointer<T>(a),
           pointer<T>(b), pointer<T>(mask), n, eps, scale, pointer<T>(da));
  });
}

}  // namespace rivulet::cuda
