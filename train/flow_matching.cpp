#include "train/flow_matching.h"

#include <algorithm>
#include <cmath>

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/loss.h"

namespace rivulet {

NoiseLevel level_of_index(int64_t i, double shift) {
  const double sigma = shift_level(static_cast<double>(i) / 1000, shift);
  // Rounding must not push a level that is a whole number of thousandths to the one below.
  return {sigma, static_cast<int64_t>(std::floor(1000 * sigma + 1e-9))};
}

NoiseLevel draw_level(Rng& rng, double shift, double mean, double std) {
  const double u = 1 / (1 + std::exp(-(mean + std * rng.normal())));
  return level_of_index(std::min<int64_t>(static_cast<int64_t>(std::floor(1000 * u)), 999), shift);
}

bool draw_text_dropout(Rng& rng, double p) { return rng.uniform() < p; }

Tensor add_noise(const Tensor& x0, const Tensor& eps, const std::vector<double>& sigma) {
  check(eps.shape() == x0.shape(), "add_noise: x0 has shape ", x0.shape(), ", eps ", eps.shape());
  check(x0.dims() >= 1 && x0.dim(0) == static_cast<int64_t>(sigma.size()), "add_noise: ", sigma.size(),
        " noise levels for x0 of shape ", x0.shape());
  Shape per_sample{x0.dim(0)};
  for (int i = 1; i < x0.dims(); ++i) per_sample.push_back(1);
  std::vector<double> keep(sigma.size());
  for (size_t i = 0; i < sigma.size(); ++i) keep[i] = 1 - sigma[i];
  auto level = [&](const std::vector<double>& values) {
    return Tensor::of(values, per_sample, x0.dtype()).to(x0.device());
  };
  return x0 * level(keep) + eps * level(sigma);
}

Tensor flow_matching_loss(const Tensor& v, const Tensor& eps, const Tensor& x0) {
  check(v.shape() == x0.shape() && eps.shape() == x0.shape(), "flow_matching_loss: v has shape ", v.shape(),
        ", eps ", eps.shape(), ", x0 ", x0.shape());
  return mse_loss(v, eps - x0);
}

}  // namespace rivulet
