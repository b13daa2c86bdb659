// Levels, samplers and the losses of distribution matching, against exact answers.
#include "train/dmd.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/recipe_fixtures.h"
#include "train/rollout.h"

using namespace rivulet;

namespace {

const Shape kLatents{2, 3, 4, 2, 2};

ScoreNoise noise_at(const Tensor& x, const std::vector<double>& t, Rng& rng) {
  std::vector<double> sigma;
  for (double one : t) sigma.push_back(table_level(one));
  return {Tensor::of(sigma, {x.dim(0)}), Tensor::of(t, {x.dim(0)}), randn(x.shape(), rng)};
}

}  // namespace

TEST_CASE("the table of distillation levels, which never reaches 0") {
  const double t[] = {1000, 961, 893, 743, 20, 980, 0};
  const double sigma[] = {1, 0.9610183, 0.8931615, 0.7425569, 0.0235, 0.98006, 0.0079444};
  for (int i = 0; i < 7; ++i) CHECK(std::abs(table_level(t[i]) - sigma[i]) < (i < 4 || i == 6 ? 1e-6 : 5e-5));
  CHECK(shift_level(0.5, 3) == doctest::Approx(0.75).epsilon(1e-12));
}

TEST_CASE("the level of the scores: shift 8, held in [20, 980], one per clip") {
  Rng rng{3};
  std::vector<double> told;
  const Tensor x = zeros({500, 1, 3, 1, 1});
  for (int i = 0; i < 40; ++i) {
    const ScoreNoise n = draw_score_noise(x, {}, rng);
    CHECK(n.sigma.shape() == Shape{500});
    for (double t : n.t.to_vector()) told.push_back(t);
    if (i > 0) continue;
    for (int64_t b = 0; b < 500; ++b)
      CHECK(n.sigma.data<float>()[b] == doctest::Approx(table_level(n.t.data<float>()[b])));
  }
  std::sort(told.begin(), told.end());
  CHECK(told.front() >= 20);
  CHECK(told.back() == 980);
  const double at_top = double(std::count(told.begin(), told.end(), 980.0)) / double(told.size());
  CHECK(std::abs(at_top - 0.14) < 0.01);
  CHECK(std::abs(told[told.size() / 2] - 889) < 5);
  CHECK(std::abs(told[told.size() / 20] - 292) < 20);
}

TEST_CASE("every sampler follows an oracle to the data, and away from it with the sign turned") {
  Rng rng{4};
  const Tensor x0 = randn(kLatents, rng), noise = randn(kLatents, rng);
  for (double sign : {1.0, -1.0}) {
    const Velocity oracle = [&](const Tensor& x, double, double sigma) { return (x - x0) * (sign / sigma); };
    std::vector<Tensor> ends;
    for (int64_t count : {1, 2, 4, 9})
      for (bool renoise : {false, true}) {
        SampleOptions options;
        options.steps = default_steps(count);
        options.renoise = renoise;
        ends.push_back(sample(oracle, noise, options, rng));
      }
    ends.push_back(sample_multistep(oracle, noise, solver_levels(7)));
    ends.push_back(sample_multistep(oracle, noise, solver_levels(12, 8, {1000, 961, 893, 743})));
    const double start = largest_difference(noise, x0);
    for (const Tensor& end : ends) {
      if (sign > 0)
        CHECK(largest_difference(end, x0) < 1e-4);
      else
        CHECK(largest_difference(end, x0) > start);
    }
  }
}

TEST_CASE("the solver's levels hit those of the student and fall evenly between them") {
  const std::vector<double> steps{1000, 961, 893, 743}, levels = solver_levels(50, 8, steps);
  CHECK(levels.size() == 51);
  CHECK(std::is_sorted(levels.rbegin(), levels.rend()));
  for (double t : steps)
    CHECK(std::any_of(levels.begin(), levels.end(),
                      [&](double s) { return std::abs(s - table_level(t)) < 1e-12; }));
  const std::vector<double> plain = solver_levels(4);
  for (int i = 0; i <= 4; ++i) CHECK(plain[size_t(i)] == doctest::Approx(shift_level(1 - i / 4.0, 8)));
  CHECK_THROWS_WITH_AS(solver_levels(3, 8, steps), doctest::Contains("3 steps"), Error);
}

TEST_CASE("the multistep solver is of second order") {
  // Gaussian data N(0, s^2) per element: the exact flow maps noise e to s e.
  const double s = 0.4;
  Rng rng{8};
  const Tensor noise = randn({1, 1, 1, 8, 8}, rng);
  const Velocity exact = [&](const Tensor& x, double, double sigma) {
    const double a = 1 - sigma, spread = a * a * s * s + sigma * sigma;
    return x * ((sigma - a * s * s) / spread);
  };
  const auto error = [&](int64_t count) {
    return largest_difference(sample_multistep(exact, noise, solver_levels(count)), noise * s);
  };
  CHECK(error(100) < 2e-3);
  CHECK(error(50) / error(100) > 3);  // 2 would be first order
}

TEST_CASE("guidance in distribution matching is cond + w (cond - uncond)") {
  const Tensor c = Tensor::of({2}, {1}), n = Tensor::of({1.5}, {1});
  CHECK(guided(c, n, 3).item() == doctest::Approx(3.5));
  CHECK(guided(c, n, 3).item() == doctest::Approx((n + (c - n) * 4.0).item()));
}

TEST_CASE("the normaliser is the mean distance to the teacher over the whole window, per sample") {
  Rng rng{5};
  const Tensor x = randn(kLatents, rng), fake = randn(kLatents, rng), real = randn(kLatents, rng);
  const Tensor g = dmd_direction(x, fake, real);
  for (int64_t b = 0; b < 2; ++b) {
    const double n = mean(abs(x - real).select(0, b)).item();
    CHECK(largest_difference(g.select(0, b) * n, (fake - real).select(0, b)) < 1e-5);
  }
  CHECK(dmd_direction(x, fake, x).to_vector()[0] ==
        doctest::Approx(1e6 * (fake - x).to_vector()[0]).epsilon(1e-4));
  Tensor broken = fake.clone();
  broken.select(0, 1).slice(0, 0, 1).fill(std::numeric_limits<double>::quiet_NaN());
  const Tensor kept = dmd_direction(x, broken, real);
  CHECK(largest_difference(kept.select(0, 0), g.select(0, 0)) == 0);
  CHECK(mean(abs(kept.select(0, 1))).item() == 0);
}

TEST_CASE("the gradient of distribution matching is g / #masked, and nothing on the overlap") {
  Rng rng{6};
  Tensor x = randn(kLatents, rng);
  const Tensor g = randn(kLatents, rng) * 1e-4, mask = Tensor::of({0, 1, 1, 1}, {4});
  x.set_requires_grad();
  const Tensor loss = dmd_loss(x, g, mask);
  backward(loss);
  const double count = 2 * 3 * 3 * 2 * 2;
  CHECK(mean(abs(x.grad().slice(2, 0, 1))).item() == 0);
  // 1e-6 of what is there: x - (x - g) in f32 would lose it.
  const Tensor want = g.slice(2, 1, 4) * (1 / count);
  CHECK(largest_difference(x.grad().slice(2, 1, 4), want) < 1e-6 * 1e-4);
  CHECK(loss.item() == doctest::Approx(0.5 * mean(square(g.slice(2, 1, 4))).item()).epsilon(1e-5));
  CHECK_THROWS_WITH_AS(dmd_loss(x, g, zeros({4})), doctest::Contains("no frame"), Error);
}

TEST_CASE("two unit Gaussians: the direction is known, and a step moves the student to the teacher") {
  // Perfect scores of N(mu, 1) at level s: x0 = mu + a (y - a mu) / (a^2 + s^2), a = 1 - s.
  const double teacher = 1.5, student = -0.5;
  const auto perfect = [](double mu) -> EditNet {
    return [mu](const NetCall& c) {
      const Tensor s = over_latents(c.sigma), a = 1.0 - s;
      const Tensor x0 = (c.x - a * mu) * a / (square(a) + square(s)) + mu;
      return (c.x - x0) / s;
    };
  };
  Rng rng{7};
  const TextContext text{};
  const Tensor mask = ones({4});
  for (double t : {300.0, 743.0, 961.0}) {
    Tensor mu = full({1, 1, 1, 1, 1}, student);
    mu.set_requires_grad();
    const Tensor x = randn(kLatents, rng) + mu;
    const ScoreNoise n = noise_at(x, {t, t}, rng);
    const double s = table_level(t), factor = s * s / ((1 - s) * (1 - s) + s * s);
    const Tensor y = noised(x.detach(), n.eps, n.sigma);
    const auto asked = [&](double m) {
      return clean_of(y, perfect(m)({y, x.detach(), n.sigma, n.t, text}), n.sigma);
    };
    const Tensor difference = asked(student) - asked(teacher);
    CHECK(largest_difference(difference, full(kLatents, (student - teacher) * factor)) < 1e-4);
    // No guidance where cond and uncond agree.
    const Tensor loss =
        dmd_loss(perfect(teacher), perfect(student), {text, text, text}, x, x.detach(), mask, n, 3);
    backward(loss);
    const double moved = student - 0.1 * mu.grad().item();
    CHECK(std::abs(moved - teacher) < std::abs(student - teacher));
  }
}

TEST_CASE("the scores see one noised window, beside its source, each with its own text") {
  Rng rng{9};
  const auto answer = [](const NetCall& c) { return c.x * 0.5; };
  Recorder real(answer), fake(answer);
  Tensor x = randn(kLatents, rng);
  x.set_requires_grad();
  const Tensor source = randn(kLatents, rng), mask = ones({4});
  const TextContext cond{}, negative{}, of_fake{};
  const ScoreNoise n = noise_at(x, {743, 400}, rng);
  dmd_loss(real.net(), fake.net(), {cond, negative, of_fake}, x, source, mask, n, 3);
  REQUIRE(real.calls.size() == 2);
  REQUIRE(fake.calls.size() == 1);
  CHECK(real.calls[0].text == &cond);
  CHECK(real.calls[1].text == &negative);
  CHECK(fake.calls[0].text == &of_fake);
  for (const Asked& a : {real.calls[0], real.calls[1], fake.calls[0]}) {
    CHECK_FALSE(a.graded);
    CHECK(a.past_chunk == -1);
    CHECK_FALSE(a.writes);
    CHECK(largest_difference(a.source, source) == 0);
    CHECK(largest_difference(a.x, noised(x.detach(), n.eps, n.sigma)) == 0);
  }
}

TEST_CASE("the critic learns the flow of the student's samples: no guidance, masked, no way back to them") {
  Rng rng{10};
  Tensor w = full({1, 1, 1, 1, 1}, 0.5), x = randn(kLatents, rng);
  w.set_requires_grad();
  x.set_requires_grad();
  Recorder fake([&](const NetCall& c) { return c.x * w; });
  const Tensor source = randn(kLatents, rng), mask = Tensor::of({0, 1, 1, 0}, {4});
  const TextContext text{};
  const ScoreNoise n = noise_at(x, {743, 961}, rng);
  const Tensor loss = critic_loss(fake.net(), text, x, source, mask, n);
  REQUIRE(fake.calls.size() == 1);
  CHECK(fake.calls[0].text == &text);
  const Tensor y = noised(x.detach(), n.eps, n.sigma);
  const Tensor error = (y * 0.5 - (n.eps - x.detach())).slice(2, 1, 3);
  CHECK(loss.item() == doctest::Approx(mean(square(error)).item()).epsilon(1e-5));
  backward(loss);
  CHECK(w.grad().defined());
  CHECK_FALSE(x.grad().defined());
}
