#include "models/flow.h"

#include <cmath>

#include "ops/elementwise.h"

namespace rivulet {

double shift_level(double u, double k) { return k * u / (1 + (k - 1) * u); }

double table_level(double t, double shift) {
  double best = 1;
  for (int j = 0; j < 1000; ++j) {
    const double level = shift_level(1 - j / 1000.0, shift);
    if (std::abs(1000 * level - t) < std::abs(1000 * best - t)) best = level;
  }
  return best;
}

std::vector<double> default_steps(int64_t count, double shift) {
  check(shift > 0, "sampling: a flow shift of ", shift);
  check(count >= 1 && count <= 1000, "sampling: ", count, " steps, 1 to 1000 are possible");
  if (count == 4) return {1000, 961, 893, 743};
  if (count == 2) return {1000, 743};
  std::vector<double> steps;
  for (int64_t i = 0; i < count; ++i)
    steps.push_back(std::trunc(1000 * shift_level(1 - double(i) / double(count), shift)));
  return steps;
}

void check_steps(const std::vector<double>& steps) {
  check(!steps.empty(), "sampling: the step list is empty");
  double above = 1000.5;
  for (double t : steps) {
    check(t > 0 && t < above, "sampling: step ", t, " does not fall from the one before within (0, 1000]");
    above = t;
  }
}

Tensor sample(const Velocity& velocity, const Tensor& noise, const SampleOptions& options, Rng& rng) {
  check_steps(options.steps);
  const auto level = [&](size_t i) {
    if (i == options.steps.size()) return 0.0;
    return options.renoise ? table_level(options.steps[i]) : options.steps[i] / 1000;
  };
  Tensor x = noise;
  for (size_t i = 0; i < options.steps.size(); ++i) {
    const double now = level(i), next = level(i + 1);
    const Tensor v = velocity(x, options.steps[i], now);
    if (options.renoise) {
      const Tensor x0 = x - v * now;
      x = next > 0 ? x0 * (1 - next) + randn(x.shape(), rng, DType::f32, x.device()) * next : x0;
    } else {
      x = x + v * (next - now);
    }
  }
  return x;
}

}  // namespace rivulet
