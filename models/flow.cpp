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

Tensor over_latents(const Tensor& x) {
  check(x.dims() == 1 || x.dims() == 2, "over_latents: levels have shape ", x.shape(), ", not [B] or [B, T]");
  return x.reshape({x.dim(0), 1, x.dims() == 2 ? x.dim(1) : 1, 1, 1});
}

std::vector<double> default_steps(int64_t count) {
  check(count >= 1 && count <= 1000, "sampling: ", count, " steps, 1 to 1000 are possible");
  if (count == 4) return {1000, 961, 893, 743};
  if (count == 2) return {1000, 743};
  std::vector<double> steps;
  for (int64_t i = 0; i < count; ++i)
    steps.push_back(std::trunc(1000 * shift_level(1 - double(i) / double(count), 8)));
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

std::vector<double> solver_levels(int64_t count, double shift, const std::vector<double>& through) {
  std::vector<double> nodes;  // in u, from 1 to 0
  for (double t : through.empty() ? std::vector<double>{1000} : through) {
    const double level = table_level(t, shift);
    nodes.push_back(level / (shift - (shift - 1) * level));  // the inverse of shift_level
  }
  nodes.push_back(0);
  const int64_t gaps = int64_t(nodes.size()) - 1;
  check(nodes[0] == 1 && count >= gaps, "sampling: ", count, " steps from t = 1000 through ", gaps,
        " levels");
  std::vector<double> levels = {1};
  for (int64_t g = 0; g < gaps; ++g) {
    const int64_t steps = (g + 1) * count / gaps - g * count / gaps;
    for (int64_t i = 1; i <= steps; ++i) {
      const double part = double(i) / double(steps);
      levels.push_back(shift_level(nodes[size_t(g)] * (1 - part) + nodes[size_t(g) + 1] * part, shift));
    }
  }
  return levels;
}

Tensor sample_multistep(const Velocity& velocity, const Tensor& noise, const std::vector<double>& levels,
                        const std::function<void(size_t, const Tensor&)>& visit) {
  check(levels.size() >= 2 && levels.front() == 1 && levels.back() == 0,
        "sampling: levels must fall from 1 to 0");
  Tensor x = noise, before;
  double step_before = 0;
  if (visit) visit(0, x);
  for (size_t i = 0; i + 1 < levels.size(); ++i) {
    const double now = levels[i], next = levels[i + 1];
    check(next < now, "sampling: level ", next, " does not fall from ", now);
    const Tensor x0 = x - velocity(x, std::trunc(1000 * now), now) * now;
    // lambda = log(alpha / sigma) is infinite at both ends, where only the first order is left.
    const bool second = i >= 2 && next > 0;
    const double step = now < 1 && next > 0 ? std::log((1 - next) / next) - std::log((1 - now) / now) : 0;
    const double ahead = second ? step / (2 * step_before) : 0;
    const Tensor data = second ? x0 * (1 + ahead) - before * ahead : x0;
    x = x * (next / now) + data * ((1 - next) - (1 - now) * next / now);
    before = x0;
    step_before = step;
    if (visit) visit(i + 1, x);
  }
  return x;
}

}  // namespace rivulet
