#include "train/metrics.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tensor/random.h"

using namespace rivulet;

namespace {

// A video whose frame t is all of value v[t].
Tensor grey(const std::vector<double>& v, int64_t h = 4, int64_t w = 5) {
  Tensor t({int64_t(v.size()), h, w, 3});
  for (size_t f = 0; f < v.size(); ++f) t.select(0, int64_t(f)).fill(v[f]);
  return t;
}

// The left two columns of five.
Tensor left_mask(int64_t frames) {
  Tensor m = zeros({frames, 4, 5});
  m.slice(2, 0, 2).fill(1);
  return m;
}

const auto near = [](double x) { return doctest::Approx(x).epsilon(1e-6); };

}  // namespace

TEST_CASE("rmse and psnr of constant differences") {
  CHECK(rmse(grey({0.5, 0.5}), grey({0.4, 0.6})) == near(0.1));
  CHECK(psnr(grey({0.5}), grey({0.4})) == near(20));
  CHECK(rmse(grey({0, 0}), grey({0, 1})) == near(std::sqrt(0.5)));
  CHECK(std::isinf(psnr(grey({0.5}), grey({0.5}))));
}

TEST_CASE("masks weigh pixels") {
  const Tensor a = grey({0.2, 0.2}), mask = left_mask(2);
  Tensor b = a.clone();
  b.slice(2, 0, 2).fill(0.5);  // only inside the mask
  CHECK(*masked_rmse(a, b, mask) == near(0.3));
  CHECK(std::isinf(*psnr_outside(b, a, mask)));
  b = a.clone();
  b.slice(2, 2, 5).fill(0.3);  // only outside
  CHECK(*masked_rmse(a, b, mask) == 0);
  CHECK(*psnr_outside(b, a, mask) == near(20));
  CHECK_FALSE(masked_rmse(a, b, zeros({2, 4, 5})).has_value());
  CHECK_FALSE(psnr_outside(a, b, ones({2, 4, 5})).has_value());
  // Weight 1/4 on an error of 0.4 beside weight 1 on none: sqrt(0.25 * 0.16 * n / (1.25 * n)).
  Tensor soft = zeros({1, 2, 1}), c = grey({0}, 2, 1), d = c.clone();
  soft.data<float>()[0] = 0.25f;
  soft.data<float>()[1] = 1;
  d.select(1, 0).fill(0.4);
  CHECK(*masked_rmse(c, d, soft) == near(std::sqrt(0.25 * 0.16 / 1.25)));
}

TEST_CASE("error per frame, with frames that the mask leaves out") {
  const std::vector<double> e = rmse_per_frame(grey({0, 0.1, 0.3}), grey({0, 0, 0}));
  CHECK(e[0] == 0);
  CHECK(e[1] == near(0.1));
  CHECK(e[2] == near(0.3));
  Tensor mask = ones({3, 4, 5});
  mask.select(0, 2).fill(0);
  CHECK(rmse_per_frame(grey({0, 0.1, 0.3}), grey({0, 0, 0}), mask)[2] == near(0.1));
}

TEST_CASE("ssim") {
  Rng rng{3};
  const Tensor a = rand_uniform({2, 9, 11, 3}, 0, 1, rng), b = rand_uniform({2, 9, 11, 3}, 0, 1, rng);
  CHECK(ssim(a, a) == near(1));
  CHECK(ssim(a, b) == near(ssim(b, a)));
  CHECK(ssim(a, b) < 0.5);
  // Flat pictures leave only the luminance term.
  const double p = 0.2, q = 0.6;
  CHECK(ssim(grey({p}), grey({q})) == near((2 * p * q + 1e-4) / (p * p + q * q + 1e-4)));
}

TEST_CASE("edit score: 0 for the source, 1 for the target, linear between") {
  const Tensor source = grey({0.2, 0.2}), target = grey({0.6, 0.6}), mask = left_mask(2);
  CHECK(*edit_score(source, source, target, mask) == near(0));
  CHECK(*edit_score(target, source, target, mask) == near(1));
  CHECK(*edit_score(grey({0.5, 0.5}), source, target, mask) == near(0.75));
  CHECK(*edit_score(grey({0.5, 0.5}), source, target, mask, 0.1) == near(1));
  CHECK(*edit_score(grey({0, 0}), source, target, mask) == near(-0.5));
  CHECK_FALSE(edit_score(source, source, source, mask).has_value());
}

TEST_CASE("flicker counts changes that the target does not have") {
  // Output steps: +0.1, 0, -0.2. Target steps: +0.1, +0.1, 0.
  const std::vector<double> phi = flicker(grey({0.1, 0.2, 0.2, 0}), grey({0.5, 0.6, 0.7, 0.7}));
  REQUIRE(phi.size() == 3);
  CHECK(phi[0] == doctest::Approx(0).epsilon(1e-6));
  CHECK(phi[1] == near(0.1));
  CHECK(phi[2] == near(0.2));
}

TEST_CASE("boundary ratio finds the first frames of chunks") {
  // Frames 0-4, 5-7, 8-10, 11: boundaries at t = 5, 8, 11, which are entries 4, 7 and 10.
  std::vector<double> phi(11, 0.1);
  phi[4] = phi[7] = phi[10] = 0.3;
  CHECK(*boundary_ratio(phi, {5, 3}) == near(3));
  CHECK(*boundary_ratio(phi, {5, 3, 3, 3}) == near(3));
  CHECK(*boundary_ratio(std::vector<double>(11, 0), {5, 3}) == 1);
  CHECK_FALSE(boundary_ratio(phi, {20}).has_value());
  CHECK_FALSE(boundary_ratio(phi, {1}).has_value());
  CHECK_THROWS_AS(boundary_ratio(phi, {5, 0}), Error);
}

TEST_CASE("drift slope is per 100 frames") {
  CHECK(drift_slope({0.1, 0.1, 0.1}) == near(0));
  CHECK(drift_slope({0.1, 0.102, 0.104, 0.106}) == near(0.2));
  CHECK(drift_slope({0, 1, 0, 1}) == near(20));  // sum (t - 1.5)(e - 0.5) / sum (t - 1.5)^2 = 1 / 5
  CHECK_THROWS_AS(drift_slope({0.1}), Error);
}

TEST_CASE("shapes that do not fit are refused") {
  CHECK_THROWS_WITH_AS(rmse(grey({0}), grey({0, 0})), doctest::Contains("[1, 4, 5, 3] and [2, 4, 5, 3]"),
                       Error);
  CHECK_THROWS_AS(psnr_outside(grey({0}), grey({0}), ones({1, 5, 4})), Error);
  CHECK_THROWS_AS(ssim(grey({0}).to(DType::f64), grey({0}).to(DType::f64)), Error);
}
