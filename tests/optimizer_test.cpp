#include "train/optimizer.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tensor/parallel.h"
#include "train/ema.h"
#include "train/schedule.h"

using namespace rivulet;

namespace {

Tensor leaf(const std::vector<double>& values, DType dtype = DType::f32) {
  Tensor t = Tensor::of(values, {static_cast<int64_t>(values.size())}, dtype);
  t.set_requires_grad();
  return t;
}

void give_grad(const Tensor& param, const std::vector<double>& values) {
  param.set_grad(Tensor::of(values, param.shape(), param.dtype()));
}

double first(const Tensor& t) { return t.detach().to_vector()[0]; }

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

}  // namespace

TEST_CASE("two AdamW steps worked by hand") {
  const Tensor w = leaf({1.0});
  AdamW optimizer({{"w", w}}, {.weight_decay = 0.1});
  // m = 0.05, v = 0.00025, both corrected to g and g^2: w = 1 * 0.99 - 0.1 * 0.5 / 0.5
  give_grad(w, {0.5});
  optimizer.step(0.1);
  CHECK(first(w) == doctest::Approx(0.89).epsilon(1e-6));
  // m = 0.9 * 0.05 - 0.1 * 0.25 = 0.02, over 0.19;  v = 0.999 * 0.00025 + 0.001 * 0.0625, over 0.001999
  give_grad(w, {-0.25});
  optimizer.step(0.1);
  const double m = 0.02 / 0.19, v = 0.00031225 / 0.001999;
  CHECK(first(w) == doctest::Approx(0.89 * 0.99 - 0.1 * m / std::sqrt(v)).epsilon(1e-6));
  CHECK(optimizer.steps_done() == 2);
}

TEST_CASE("a constant gradient has a closed form: steps of lr against its sign, shrinking by the decay") {
  // w' = (1 - a) w - lr sign(g) with a = lr * decay, so w_n = (1 - a)^n (w_0 + lr s / a) - lr s / a.
  const double lr = 0.01, decay = 0.5, a = lr * decay;
  const Tensor w = leaf({2.0, -1.0, 0.25});
  AdamW optimizer({{"w", w}}, {.eps = 1e-12, .weight_decay = decay});
  const std::vector<double> g{3.0, -0.001, 20.0};
  for (int i = 0; i < 50; ++i) {
    give_grad(w, g);
    optimizer.step(lr);
  }
  const std::vector<double> start{2.0, -1.0, 0.25}, got = w.detach().to_vector();
  for (size_t i = 0; i < 3; ++i) {
    const double s = g[i] > 0 ? 1 : -1, want = std::pow(1 - a, 50) * (start[i] + lr * s / a) - lr * s / a;
    CHECK(got[i] == doctest::Approx(want).epsilon(2e-5));
  }
}

TEST_CASE("the first group that matches a name decides its rate and decay") {
  const Tensor a = leaf({1.0}), b = leaf({1.0}), c = leaf({1.0}), frozen = leaf({1.0});
  AdamWOptions options;
  options.weight_decay = 1;
  options.groups = {{"frozen*", 0, {}}, {"*.bias", 1, 0.0}, {"blocks.*", 0.5, {}}};
  AdamW optimizer(
      {{"blocks.0.weight", a}, {"blocks.0.bias", b}, {"head.weight", c}, {"frozen.weight", frozen}}, options);
  for (const Tensor& t : {a, b, c, frozen}) give_grad(t, {1.0});
  optimizer.step(0.1);
  CHECK(first(a) == doctest::Approx(0.95 - 0.05));
  CHECK(first(b) == doctest::Approx(0.9));
  CHECK(first(c) == doctest::Approx(0.9 - 0.1));
  CHECK(first(frozen) == 1.0);
  CHECK_THROWS_WITH_AS(AdamW({{"w", a}}, {.groups = {{"blocks.*", 1, {}}}}),
                       doctest::Contains("\"blocks.*\" decides for no parameter"), Error);
  CHECK_THROWS_WITH_AS(AdamW({{"table", leaf({1}, DType::f64)}}, {}), doctest::Contains("table is f64"),
                       Error);
}

TEST_CASE("parameters without a gradient stay, decay included") {
  const Tensor w = leaf({1.0});
  AdamW optimizer({{"w", w}}, {.weight_decay = 1});
  optimizer.step(0.1);
  CHECK(first(w) == 1.0);
}

TEST_CASE("half parameters gather steps too small for their own format in the f32 master copy") {
  for (DType dtype : {DType::bf16, DType::f16}) {
    const Tensor w = leaf({1.0}, dtype);
    AdamW optimizer({{"w", w}}, {});
    for (int i = 0; i < 100; ++i) {
      give_grad(w, {1.0});
      optimizer.step(1e-4);  // below half a unit in the last place of either format at 1
    }
    CHECK(first(w) == doctest::Approx(0.99).epsilon(0.002));
    CHECK(optimizer.state().back().first == "master.w");
    CHECK(first(optimizer.state().back().second) == doctest::Approx(0.99).epsilon(1e-5));
  }
}

TEST_CASE("the global norm spans all tensors and clipping scales to it") {
  const Tensor a = leaf({0, 0}), b = leaf({0}), none = leaf({5});
  give_grad(a, {3, 0});
  give_grad(b, {-4});
  const NamedTensors params{{"a", a}, {"b", b}, {"none", none}};
  CHECK(grad_norm(params) == doctest::Approx(5));
  CHECK(clip_scale(5, 0.1) == doctest::Approx(0.02));
  CHECK(clip_scale(5, 10) == 1);
  CHECK(clip_scale(5, 0) == 1);
  // A scaled step is a step on the scaled gradient: the first moment shows it.
  AdamW optimizer(params, {});
  optimizer.step(0.1, 0.02);
  CHECK(first(optimizer.state()[0].second) == doctest::Approx(0.1 * 0.06));
  zero_grad(params);
  CHECK(grad_norm(params) == 0);
}

TEST_CASE("steps and norms are the same bits for any number of threads") {
  const int before = num_threads();
  Tensor results[2];
  double norms[2];
  for (int i = 0; i < 2; ++i) {
    set_threads(i == 0 ? 1 : 4);
    Rng rng{7};
    Tensor w = randn({50001}, rng);
    w.set_requires_grad();
    AdamW optimizer({{"w", w}}, {.weight_decay = 0.01});
    for (int k = 0; k < 3; ++k) {
      w.set_grad(randn({50001}, rng));
      norms[i] = grad_norm({{"w", w}});
      optimizer.step(1e-3, clip_scale(norms[i], 1));
    }
    results[i] = w.detach();
  }
  set_threads(before);
  CHECK(norms[0] == norms[1]);
  CHECK(same_bits(results[0], results[1]));
}

TEST_CASE("warm-up, constant and cosine rates") {
  const Schedule constant{.lr = 1, .warmup = 4, .steps = 10};
  CHECK(constant.at(0) == doctest::Approx(0.25));
  CHECK(constant.at(3) == 1);
  CHECK(constant.at(9) == 1);
  const Schedule cosine{.lr = 2, .warmup = 1, .steps = 12, .cosine = true, .final_fraction = 0.1};
  CHECK(cosine.at(0) == 2);
  CHECK(cosine.at(1) == 2);
  CHECK(cosine.at(6) == doctest::Approx(1.1));  // half way: the mean of 2 and 0.2
  CHECK(cosine.at(11) == doctest::Approx(0.2));
  CHECK(cosine.at(500) == doctest::Approx(0.2));
  for (int64_t i = 1; i < 11; ++i) CHECK(cosine.at(i + 1) < cosine.at(i));
}

TEST_CASE("the average starts as a copy at its start step and then follows the recurrence") {
  const Tensor w = leaf({1.0, 0.5}, DType::bf16);
  Ema ema({{"w", w}}, 0.9, 2);
  auto set = [&](double x) { w.detach().fill(x); };
  for (int64_t step = 0; step < 2; ++step) {
    set(8);
    ema.update(step);
    CHECK_FALSE(ema.active());
  }
  set(4);
  ema.update(2);
  REQUIRE(ema.active());
  CHECK(ema.average()[0].second.dtype() == DType::f32);
  // Towards a constant x the distance shrinks by the decay each step: x + (start - x) * decay^n.
  set(2);
  for (int64_t step = 3; step < 23; ++step) ema.update(step);
  CHECK(first(ema.average()[0].second) == doctest::Approx(2 + 2 * std::pow(0.9, 20)).epsilon(1e-5));
  {
    const EmaScope scope(ema, {{"w", w}});
    CHECK(first(w) == doctest::Approx(2.243).epsilon(0.004));
  }
  CHECK(first(w) == 2);
  Ema off({{"w", w}}, 0, 0);
  off.update(0);
  CHECK_FALSE(off.active());
  CHECK_THROWS_AS(Ema({{"w", w}}, 1, 0), Error);
}
