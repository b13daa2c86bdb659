#include <cmath>

#include "ops/optim.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kEach = 4;  // elements of a thread, moved as one pack where the addresses allow it

struct AdamwNumbers {
  float b1, b2, a1, a2, keep, rate, root, eps, scale;
};

__device__ void adamw_element(float& w, float grad, float& m, float& v, const AdamwNumbers& s) {
  const float g = grad * s.scale;
  m = s.b1 * m + s.a1 * g;
  v = s.b2 * v + s.a2 * g * g;
  w = w * s.keep - s.rate * m / (sqrtf(v) * s.root + s.eps);
}

__global__ void adamw(float* w, const float* grad, float* m, float* v, int64_t n, bool packs,
                      AdamwNumbers s) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kEach;
  if (packs && i + kEach <= n) {
    const Pack<float, kEach> pg = load_pack(grad + i);
    Pack<float, kEach> pw = load_pack(w + i), pm = load_pack(m + i), pv = load_pack(v + i);
#pragma unroll
    for (int k = 0; k < kEach; ++k) adamw_element(pw.v[k], pg.v[k], pm.v[k], pv.v[k], s);
    store_pack(w + i, pw);
    store_pack(m + i, pm);
    store_pack(v + i, pv);
  } else {
    for (int64_t k = i; k < min(i + kEach, n); ++k) adamw_element(w[k], grad[k], m[k], v[k], s);
  }
}

__global__ void ema(float* average, const float* x, int64_t n, bool packs, float keep, float add) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kEach;
  if (packs && i + kEach <= n) {
    const Pack<float, kEach> px = load_pack(x + i);
    Pack<float, kEach> pa = load_pack(average + i);
#pragma unroll
    for (int k = 0; k < kEach; ++k) pa.v[k] = keep * pa.v[k] + add * px.v[k];
    store_pack(average + i, pa);
  } else {
    for (int64_t k = i; k < min(i + kEach, n); ++k) average[k] = keep * average[k] + add * x[k];
  }
}

// One partial sum per block, of the elements that the grid's stride gives it; then one block adds those.
__global__ void squares(double* partial, const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    sum += double(x[i]) * double(x[i]);
  sum = block_sum<kThreads / 32>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void add_partials(double* total, const double* partial, int n) {
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) sum += partial[i];
  sum = block_sum<kThreads / 32>(sum);
  if (threadIdx.x == 0) *total = sum;
}

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(), [](const void* p) { return is_aligned(p, 16); });
}

}  // namespace

void adamw_update(const Tensor& w, const Tensor& grad, const Tensor& m, const Tensor& v,
                  const AdamwStep& step) {
  const double n = static_cast<double>(step.count);
  const AdamwNumbers s{float(step.beta1),
                       float(step.beta2),
                       float(1 - step.beta1),
                       float(1 - step.beta2),
                       float(1 - step.lr * step.weight_decay),
                       float(step.lr / (1 - std::pow(step.beta1, n))),
                       float(1 / std::sqrt(1 - std::pow(step.beta2, n))),
                       float(step.eps),
                       float(step.grad_scale)};
  float *pw = w.data<float>(), *pm = m.data<float>(), *pv = v.data<float>();
  const float* pg = grad.data<float>();
  launch({blocks_for(w.numel(), kEach * kThreads), kThreads}, adamw, pw, pg, pm, pv, w.numel(),
         aligned({pw, pg, pm, pv}), s);
}

void ema_update(const Tensor& average, const Tensor& x, double decay) {
  float* pa = average.data<float>();
  const float* px = x.data<float>();
  launch({blocks_for(x.numel(), kEach * kThreads), kThreads}, ema, pa, px, x.numel(), aligned({pa, px}),
         float(decay), float(1 - decay));
}

double sum_of_squares(const Tensor& x) {
  const int64_t n = x.numel();
  if (n == 0) return 0;
  const int blocks = int(std::min<int64_t>((n + 4 * kThreads - 1) / (4 * kThreads), 1024));
  const Tensor partial({blocks + 1}, DType::f64, Device::cuda);
  double* p = partial.data<double>();
  launch({unsigned(blocks), kThreads}, squares, p + 1, x.data<float>(), n);
  launch({1, kThreads}, add_partials, p, p + 1, blocks);
  return partial.slice(0, 0, 1).item();
}

}  // namespace rivulet::cuda
