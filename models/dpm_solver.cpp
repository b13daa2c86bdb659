#include "models/dpm_solver.h"

#include <cmath>

#include "ops/elementwise.h"

namespace rivulet {

std::vector<double> clip_levels(int64_t steps, double shift) {
  check(steps >= 1 && steps <= 1000, "sampling: ", steps, " steps, 1 to 1000 are possible");
  check(shift > 0, "sampling: the shift is ", shift, ", wanted above 0");
  std::vector<double> levels;
  for (int64_t i = 0; i <= steps; ++i)
    levels.push_back(shift_level(0.999 * double(steps - i) / double(steps), shift));
  return levels;
}

Tensor sample_dpm(const Velocity& velocity, const Tensor& noise, const std::vector<double>& levels) {
  check(levels.size() >= 2 && levels.back() == 0,
        "sampling: levels must end in 0, with at least one before it");
  check(levels.front() < 1, "sampling: level ", levels.front(), " is all noise, wanted below 1");
  for (size_t i = 1; i < levels.size(); ++i)
    check(levels[i] < levels[i - 1], "sampling: level ", levels[i], " does not fall from ", levels[i - 1]);
  const auto log_ratio = [](double s) { return std::log((1 - s) / s); };
  Tensor x = noise, before;
  double h_before = 0;
  for (size_t i = 0; i + 1 < levels.size(); ++i) {
    const double now = levels[i], next = levels[i + 1];
    const Tensor clean = x - velocity(x, 1000 * now, now) * now;
    if (next == 0) return clean;
    const double h = log_ratio(next) - log_ratio(now), keep = next / now;
    const Tensor ahead = before ? clean + (clean - before) * (h / (2 * h_before)) : clean;
    x = x * keep + ahead * (1 - keep);
    before = clean;
    h_before = h;
  }
  return x;
}

Velocity guided(Velocity positive, Velocity negative, double scale) {
  if (scale == 1) return positive;
  return [=](const Tensor& x, double t, double sigma) {
    const Tensor away = negative(x, t, sigma);
    return away + (positive(x, t, sigma) - away) * scale;
  };
}

}  // namespace rivulet
