#include "models/flow.h"
#include "train/flow_matching.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tensor/autograd.h"

using namespace rivulet;

TEST_CASE("shift moves levels as tabulated") {
  CHECK(shift_level(0.5, 3) == doctest::Approx(0.75));
  CHECK(shift_level(0, 3) == 0);
  CHECK(shift_level(1, 3) == 1);
  CHECK(shift_level(0.3, 1) == doctest::Approx(0.3));
  // The table of inference levels at shift 8, by the base level that each step starts from.
  const double base[] = {0.001, 0.755, 0.511, 0.265}, want[] = {0.0079444, 0.9610183, 0.8931615, 0.7425569};
  for (int i = 0; i < 4; ++i) CHECK(shift_level(base[i], 8) == doctest::Approx(want[i]).epsilon(1e-5));
}

TEST_CASE("the network's t is floor(1000 sigma) in exact arithmetic for every level") {
  for (int64_t k : {1, 3, 8})
    for (int64_t i = 0; i < 1000; ++i) {
      const NoiseLevel level = level_of_index(i, double(k));
      CHECK(level.t == 1000 * k * i / (1000 + (k - 1) * i));
      CHECK(level.sigma == doctest::Approx(double(k * i) / double(1000 + (k - 1) * i)).epsilon(1e-14));
    }
}

TEST_CASE("training levels have the quantiles of the logit-normal law at shift 3") {
  Rng rng{5};
  std::vector<double> sigmas(200000);
  for (double& s : sigmas) {
    const NoiseLevel level = draw_level(rng, 3);
    s = level.sigma;
    REQUIRE(level.t >= 0);
    REQUIRE(level.t < 1000);
  }
  std::sort(sigmas.begin(), sigmas.end());
  const double part[] = {0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99},
               table[] = {0.23, 0.36, 0.60, 0.75, 0.86, 0.94, 0.97};
  // The inverse law: u = sigmoid(z), sigma = shift(floor(1000 u) / 1000).
  const double z[] = {-2.326348, -1.644854, -0.674490, 0, 0.674490, 1.644854, 2.326348};
  for (int i = 0; i < 7; ++i) {
    const double got = sigmas[size_t(part[i] * double(sigmas.size()))];
    CHECK(got ==
          doctest::Approx(shift_level(std::floor(1000 / (1 + std::exp(-z[i]))) / 1000, 3)).epsilon(0.01));
    CHECK(std::abs(got - table[i]) < 0.01);  // printed to two digits
  }
  double sum = 0;
  for (int i = 0; i < 20000; ++i) sum += std::log(1 / (1 / draw_level(rng, 1, 0.5, 0.2).sigma - 1));
  CHECK(sum / 20000 == doctest::Approx(0.5).epsilon(0.02));
}

TEST_CASE("text is dropped at the given rate, one draw each") {
  Rng rng{9};
  int dropped = 0;
  for (int i = 0; i < 50000; ++i) dropped += draw_text_dropout(rng, 0.1);
  CHECK(dropped / 50000.0 == doctest::Approx(0.1).epsilon(0.05));
  Rng a{3}, b{3};
  CHECK_FALSE(draw_text_dropout(a, 0));
  CHECK(draw_text_dropout(b, 1));
  CHECK(a.offset == b.offset);
}

TEST_CASE("noise is mixed per sample on the straight path") {
  const Tensor x0 = Tensor::of({1, 2, 3, 4}, {2, 1, 2}), eps = Tensor::of({-1, 0, 5, 8}, {2, 1, 2});
  const auto x = add_noise(x0, eps, {0.25, 1}).to_vector();
  const double want[] = {0.5, 1.5, 5, 8};
  for (size_t i = 0; i < 4; ++i) CHECK(x[i] == doctest::Approx(want[i]));
  CHECK_THROWS_WITH_AS(add_noise(x0, eps, {0.5}), doctest::Contains("1 noise levels"), Error);
  CHECK_THROWS_WITH_AS(add_noise(x0, zeros({2, 2}), {0.5, 0.5}), doctest::Contains("eps [2, 2]"), Error);
}

TEST_CASE("the loss is the mean square distance to eps - x0, with its gradient") {
  const Tensor x0 = Tensor::of({1, 2, 3, 4}, {2, 2}), eps = Tensor::of({-1, 0, 5, 8}, {2, 2});
  Tensor v = Tensor::of({-2, 0, 2, 5}, {2, 2});  // the target is -2, -2, 2, 4
  v.set_requires_grad();
  const Tensor loss = flow_matching_loss(v, eps, x0);
  CHECK(loss.numel() == 1);
  CHECK(loss.item() == doctest::Approx((0 + 4 + 0 + 1) / 4.0));
  backward(loss);
  const auto g = v.grad().to_vector();
  const double want[] = {0, 1, 0, 0.5};
  for (size_t i = 0; i < 4; ++i) CHECK(g[i] == doctest::Approx(want[i]));
  CHECK_THROWS_WITH_AS(flow_matching_loss(zeros({4}), eps, x0), doctest::Contains("v has shape [4]"), Error);
}

TEST_CASE("an oracle velocity has no loss and leads from any level straight back to the data") {
  Rng rng{2};
  const Tensor x0 = randn({3, 4, 5}, rng), eps = randn({3, 4, 5}, rng);
  const std::vector<double> sigma{0.2, 0.61, 0.97};
  const Tensor x = add_noise(x0, eps, sigma);
  Tensor v(x0.shape()), back(x0.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double s = sigma[size_t(i / 20)], at = x.data<float>()[i], clean = x0.data<float>()[i];
    v.data<float>()[i] = float((at - clean) / s);
    back.data<float>()[i] = float(at - s * v.data<float>()[i]);
  }
  CHECK(flow_matching_loss(v, eps, x0).item() < 1e-10);
  for (int64_t i = 0; i < x.numel(); ++i)
    CHECK(back.data<float>()[i] == doctest::Approx(x0.data<float>()[i]).epsilon(1e-5));
}
