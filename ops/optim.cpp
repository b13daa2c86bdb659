#include "ops/optim.h"

#include <cmath>

#include "tensor/parallel.h"

namespace rivulet {
namespace {

constexpr int64_t kGrain = 1 << 14;

// Dense f32 with the values of x; x itself when it already is that.
Tensor as_f32(const Tensor& x) {
  const Tensor y = x.detach();
  return (y.dtype() == DType::f32 ? y : y.to(DType::f32)).contiguous();
}

void check_state(const char* who, const Tensor& state, const Shape& shape) {
  check(state.dtype() == DType::f32 && state.shape() == shape && state.is_contiguous(), who,
        ": state must be dense f32 of shape ", shape, ", got ", state.dtype(), " ", state.shape());
}

}  // namespace

void adamw_update(const Tensor& w, const Tensor& grad, const Tensor& m, const Tensor& v,
                  const AdamwStep& step) {
  check(grad.shape() == w.shape(), "adamw_update: w has shape ", w.shape(), ", grad ", grad.shape());
  for (const Tensor& state : {w, m, v}) check_state("adamw_update", state, w.shape());
  check(step.count >= 1, "adamw_update: count is ", step.count, ", must be at least 1");
  ON_DEVICE(w, adamw_update(w, as_f32(grad), m, v, step));
}

void ema_update(const Tensor& average, const Tensor& x, double decay) {
  check_state("ema_update", average, x.shape());
  ON_DEVICE(x, ema_update(average, as_f32(x), decay));
}

double sum_of_squares(const Tensor& x) {
  check(is_floating(x.dtype()), "sum_of_squares: needs a floating type, got ", x.dtype());
  return ON_DEVICE(x, sum_of_squares(as_f32(x)));
}

namespace cpu {

void adamw_update(const Tensor& w, const Tensor& grad, const Tensor& m, const Tensor& v,
                  const AdamwStep& step) {
  float *pw = w.data<float>(), *pm = m.data<float>(), *pv = v.data<float>();
  const float* pg = grad.data<float>();
  const double n = static_cast<double>(step.count);
  const float b1 = static_cast<float>(step.beta1), b2 = static_cast<float>(step.beta2);
  const float a1 = static_cast<float>(1 - step.beta1), a2 = static_cast<float>(1 - step.beta2);
  const float keep = static_cast<float>(1 - step.lr * step.weight_decay);
  const float rate = static_cast<float>(step.lr / (1 - std::pow(step.beta1, n)));
  const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(step.beta2, n)));
  const float eps = static_cast<float>(step.eps), scale = static_cast<float>(step.grad_scale);
  parallel_for(w.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = pg[i] * scale;
      const float mi = b1 * pm[i] + a1 * g, vi = b2 * pv[i] + a2 * g * g;
      pm[i] = mi;
      pv[i] = vi;
      pw[i] = pw[i] * keep - rate * mi / (std::sqrt(vi) * root + eps);
    }
  });
}

void ema_update(const Tensor& average, const Tensor& x, double decay) {
  float* pa = average.data<float>();
  const float* px = x.data<float>();
  const float keep = static_cast<float>(decay), add = static_cast<float>(1 - decay);
  parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) pa[i] = keep * pa[i] + add * px[i];
  });
}

double sum_of_squares(const Tensor& x) {
  const float* p = x.data<float>();
  const int64_t n = x.numel();
  std::vector<double> pieces((n + kGrain - 1) / kGrain);
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += double(p[i]) * double(p[i]);
    pieces[begin / kGrain] = sum;
  });
  double sum = 0;
  for (double piece : pieces) sum += piece;
  return sum;
}

}  // namespace cpu
}  // namespace rivulet
