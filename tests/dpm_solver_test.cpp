// The sampler of the bidirectional model where the answer is known: a network that knows the picture, and a
// picture whose values are normal numbers, along whose trajectories everything can be written down.
#include <doctest/doctest.h>

#include <cmath>

#include "models/dpm_solver.h"
#include "models/golden.h"
#include "ops/elementwise.h"

using namespace rivulet;

namespace {

constexpr double kMean = 0.7, kSpread = 0.4;

// The best velocity for pictures of independent normal values: the derivative of
// x_s = (1 - s) mean + sqrt((1 - s)^2 spread^2 + s^2) z along s, z fixed.
Tensor normal_velocity(const Tensor& x, double, double s) {
  const double variance = (1 - s) * (1 - s) * kSpread * kSpread + s * s;
  const double slope = (s - (1 - s) * kSpread * kSpread) / variance;
  return (x - (1 - s) * kMean) * slope - kMean;
}

// Euler's step on the same levels: what the sampler is without its history.
Tensor sample_euler(const Velocity& velocity, const Tensor& noise, const std::vector<double>& levels) {
  Tensor x = noise;
  for (size_t i = 0; i + 1 < levels.size(); ++i)
    x = x + velocity(x, 0, levels[i]) * (levels[i + 1] - levels[i]);
  return x;
}

// Levels at even distances of h from 0.9 to 1e-6, so that nothing but the order of the steps shows.
std::vector<double> even_levels(int64_t steps) {
  const double first = std::log(1 / 0.9 - 1), last = std::log(1e6 - 1);
  std::vector<double> levels;
  for (int64_t i = 0; i <= steps; ++i)
    levels.push_back(1 / (1 + std::exp(first + (last - first) * double(i) / double(steps))));
  levels.push_back(0);
  return levels;
}

// Distance to the end of the trajectory that starts at the same noise.
using Sampler = Tensor (*)(const Velocity&, const Tensor&, const std::vector<double>&);
double error_of(Sampler sampler, const std::vector<double>& levels) {
  Rng rng{4};
  const Tensor noise = randn({64}, rng, DType::f64);
  const double s = levels[0], spread = std::sqrt((1 - s) * (1 - s) * kSpread * kSpread + s * s);
  const Tensor z = (noise - (1 - s) * kMean) / spread;
  return relative_error(sampler(normal_velocity, noise, levels), z * kSpread + kMean);
}

}  // namespace

TEST_CASE("the levels of the release") {
  const auto levels = clip_levels(50, 8);
  REQUIRE(levels.size() == 51);
  CHECK(levels[0] == doctest::Approx(8 * 0.999 / (1 + 7 * 0.999)).epsilon(1e-14));
  CHECK(levels[25] == doctest::Approx(8 * 0.4995 / (1 + 7 * 0.4995)).epsilon(1e-14));
  CHECK(levels[50] == 0);
  CHECK_THROWS_AS(clip_levels(0, 8), Error);
  CHECK_THROWS_AS(clip_levels(50, 0), Error);
}

TEST_CASE("a network that knows the picture gives it back, in any number of steps") {
  Rng rng{2};
  const Tensor picture = randn({3, 5}, rng), noise = randn({3, 5}, rng);
  const auto oracle = [&](const Tensor& x, double t, double s) {
    CHECK(t == doctest::Approx(1000 * s));
    return (x - picture) / s;
  };
  for (const int64_t steps : {1, 2, 3, 7, 50})
    CHECK(relative_error(sample_dpm(oracle, noise, clip_levels(steps, 8)), picture) < 1e-6);
  const auto away = [&](const Tensor& x, double, double s) { return (picture - x) / s; };
  CHECK(relative_error(sample_dpm(away, noise, clip_levels(50, 8)), picture) > 1);
}

TEST_CASE("the error falls with the square of the number of steps, Euler's with the number") {
  const auto ratio = [](Sampler sampler, int64_t steps) {
    return error_of(sampler, even_levels(steps)) / error_of(sampler, even_levels(2 * steps));
  };
  for (const int64_t steps : {100, 200, 400}) {
    CHECK(ratio(sample_dpm, steps) == doctest::Approx(4).epsilon(0.03));
    CHECK(ratio(sample_euler, steps) == doctest::Approx(2).epsilon(0.03));
  }
}

TEST_CASE("on the release's levels it is nearer to the end than Euler's steps") {
  for (const int64_t steps : {50, 400, 800}) {
    const auto levels = clip_levels(steps, 8);
    CHECK(error_of(sample_dpm, levels) < 0.5 * error_of(sample_euler, levels));
  }
  CHECK(error_of(sample_dpm, clip_levels(800, 8)) < 1e-3);
}

TEST_CASE("guidance goes from the negative velocity through the positive one") {
  const Tensor x = zeros({2}), positive = Tensor::of({1, 2}, {2}), negative = Tensor::of({3, -1}, {2});
  int asked = 0;
  const auto yes = [&](const Tensor&, double, double) { return positive; };
  const auto no = [&](const Tensor&, double, double) { return ++asked, negative; };
  CHECK(guided(yes, no, 6)(x, 500, 0.5).to_vector() == std::vector<double>{-9, 17});
  CHECK(guided(yes, no, 1)(x, 500, 0.5).to_vector() == std::vector<double>{1, 2});
  CHECK(asked == 1);
}

TEST_CASE("levels that do not fall to 0 are refused") {
  const auto v = [](const Tensor& x, double, double) { return x; };
  for (const std::vector<double>& bad :
       {std::vector<double>{0.9}, {0.9, 0.5}, {0.5, 0.9, 0}, {1, 0.5, 0}, {0.5, 0.5, 0}})
    CHECK_THROWS_AS(sample_dpm(v, zeros({1}), bad), Error);
}
