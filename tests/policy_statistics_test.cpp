#include <doctest/doctest.h>

#include <cmath>

#include "quant/bootstrap.h"
#include "quant/gram.h"
#include "tensor/error.h"

using namespace rivulet;

namespace {
const auto near = [](double x) { return doctest::Approx(x).epsilon(1e-9); };
}

TEST_CASE("the Gram matrix holds all products of the errors") {
  Rng rng{2};
  const Tensor e = randn({5, 9001}, rng);  // three runs, the last one short
  const Matrix g = gram_matrix(e, 3);
  for (int64_t i = 0; i < 5; ++i)
    for (int64_t j = 0; j < 5; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < 9001; ++k)
        sum += double(e.data<float>()[i * 9001 + k]) * double(e.data<float>()[j * 9001 + k]);
      CHECK(std::abs(g(i, j) - sum / 3) < 1e-5 * 3000);
      CHECK(g(i, j) == g(j, i));
    }
  const Matrix half = gram_matrix(e.to(DType::f16), 3);
  CHECK(half(1, 1) == doctest::Approx(g(1, 1)).epsilon(1e-3));
  CHECK_THROWS_AS(gram_matrix(e.select(0, 0), 1), Error);
}

TEST_CASE("the squared error of a sum of errors is the sum over the Gram matrix") {
  Rng rng{9};
  const Tensor e = randn({4, 300}, rng);
  const Matrix g = gram_matrix(e, 1);
  double total = 0, norm = 0;
  for (const double v : g.v) total += v;
  for (int64_t k = 0; k < 300; ++k) {
    double sum = 0;
    for (int64_t i = 0; i < 4; ++i) sum += double(e.data<float>()[i * 300 + k]);
    norm += sum * sum;
  }
  CHECK(total == doctest::Approx(norm).epsilon(1e-5));
}

TEST_CASE("the energy is N times the variance") {
  CHECK(energy(Tensor::of({1, 2, 3, 6}, {2, 2})) == near(14));
  CHECK_THROWS_AS(energy(full({3}, 2.0)), Error);
}

TEST_CASE("a sketch keeps lengths, and products within its error") {
  Rng rng{4};
  const Tensor a = randn({50000}, rng), b = randn({50000}, rng);
  const Tensor mixed = a.clone();
  mixed.add_in_place(b, 0.5);
  CHECK(sketch(a, 50000).numel() == 50000);
  const auto dot = [](const Tensor& x, const Tensor& y) {
    double sum = 0;
    for (int64_t i = 0; i < x.numel(); ++i) sum += double(x.data<float>()[i]) * double(y.data<float>()[i]);
    return sum;
  };
  const int64_t size = 4096;
  const Tensor sa = sketch(a, size), sb = sketch(b, size), sm = sketch(mixed, size);
  CHECK(sa.numel() == size);
  CHECK(dot(sa, sa) == doctest::Approx(dot(a, a)).epsilon(1e-6));
  const double unit = std::sqrt(dot(a, a) * dot(b, b));
  CHECK(std::abs(dot(sa, sb) - dot(a, b)) < 4 * unit / std::sqrt(double(size)));
  CHECK(std::abs(dot(sa, sm) - dot(a, mixed)) < 4 * unit / std::sqrt(double(size)));
  CHECK(dot(sa, sm) > 0.7 * dot(a, a));  // and it is not near by being small
}

TEST_CASE("agreement of predictions with measurements") {
  const Agreement line = agreement({1, 2, 3, 4}, {3, 5, 7, 9});
  CHECK(line.slope == near(2));
  CHECK(line.intercept == near(1));
  CHECK(line.r2 == near(1));
  CHECK(line.rank == near(1));
  CHECK(line.slope_through_zero == near((3. + 10 + 21 + 36) / 30));
  CHECK(line.r2_as_is == near(1 - (4. + 9 + 16 + 25) / 20));
  const Agreement bent = agreement({1, 2, 3}, {1, 3, 2});
  CHECK(bent.slope == near(0.5));
  CHECK(bent.r2 == near(0.25));
  CHECK(bent.rank == near(0.5));
  CHECK(agreement({1, 1, 2}, {5, 7, 9}).rank == near(1.5 / std::sqrt(1.5 * 2)));
  CHECK_THROWS_AS(agreement({1, 1}, {1, 2}), Error);
}

TEST_CASE("bootstrap of three values, counted in full") {
  // All 27 resamples of {0, 3, 9}: the lowest is 0, the highest 9; with z0 and a from the definition.
  const std::vector<double> v = {0, 3, 9};
  const Interval i = bootstrap_mean(v, {}, Rng{1});
  CHECK(i.mean == near(4));
  CHECK(i.low >= 0);
  CHECK(i.high <= 9);
  CHECK(i.low < 1.5);
  CHECK(i.high > 7);
  CHECK(i.p == near(0.5));  // 4 of the 8 signs of {0, 3, 9} give a sum of 12 or -12
  const Interval other = bootstrap_mean(v, {}, Rng{2});
  CHECK(other.low == i.low);  // nothing was drawn
  const Interval symmetric = bootstrap_mean({-1, 0, 1}, {}, Rng{1});
  CHECK(symmetric.low == near(-symmetric.high));
  CHECK(symmetric.p == near(1));
}

TEST_CASE("bootstrap: shifts, scales, degenerate cases and clusters") {
  Rng rng{6};
  std::vector<double> v, moved;
  for (int i = 0; i < 12; ++i) v.push_back(rng.normal());
  for (const double x : v) moved.push_back(5 + 2 * x);
  const Interval a = bootstrap_mean(v, {}, Rng{3}), b = bootstrap_mean(moved, {}, Rng{3});
  CHECK(b.low == near(5 + 2 * a.low));
  CHECK(b.high == near(5 + 2 * a.high));
  CHECK(a.low < a.mean);
  CHECK(a.mean < a.high);
  CHECK_FALSE(a.excludes_zero() == (a.low <= 0 && a.high >= 0));
  const Interval same = bootstrap_mean({2, 2, 2}, {}, Rng{});
  CHECK(same.low == 2);
  CHECK(same.high == 2);
  CHECK(bootstrap_mean({1, 2, 3, 4, 5}, {}, Rng{}).p == near(1. / 16));
  const Interval sure = bootstrap_mean(std::vector<double>(40, 1), {}, Rng{});
  CHECK(sure.p == near(1. / 10001));
  CHECK_FALSE(bootstrap_mean({1, 2, 3}, {7, 7, 7}, Rng{}).defined());
  // Copies of one clip say nothing new: as one cluster each they leave the interval where it was.
  std::vector<double> twice;
  std::vector<int> names;
  for (int i = 0; i < 5; ++i)
    for (int copy = 0; copy < 2; ++copy) twice.push_back(v[size_t(i)]), names.push_back(i);
  const Interval once = bootstrap_mean({v.begin(), v.begin() + 5}, {}, Rng{});
  const Interval clustered = bootstrap_mean(twice, names, Rng{});
  CHECK(clustered.low == near(once.low));
  CHECK(clustered.high == near(once.high));
}

TEST_CASE("95 % intervals of normal values hold the mean about as often as they say") {
  Rng rng{8};
  int held = 0;
  for (int round = 0; round < 400; ++round) {
    std::vector<double> v;
    for (int i = 0; i < 25; ++i) v.push_back(rng.normal());
    const Interval i = bootstrap_mean(v, {}, rng.fork(uint64_t(round)), 1000);
    held += i.low <= 0 && i.high >= 0;
  }
  // Of 25 values the bootstrap's interval is a little short: about 93 %. Four standard errors around it.
  CHECK(held > 0.93 * 400 - 4 * std::sqrt(400 * 0.93 * 0.07));
  CHECK(held < 400 * 0.99);
}

TEST_CASE("Holm's adjustment") {
  const auto p = holm({0.01, 0.04, 0.03, 0.5});
  CHECK(p[0] == near(0.04));
  CHECK(p[2] == near(0.09));
  CHECK(p[1] == near(0.09));
  CHECK(p[3] == near(0.5));
  CHECK(holm({0.9, 0.8})[0] == near(1));
}
