#include "tensor/random.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tensor/parallel.h"

using namespace rivulet;

namespace {

using Words4 = std::array<uint32_t, 4>;

std::vector<float> values(const Tensor& t) { return {t.data<float>(), t.data<float>() + t.numel()}; }

// Largest distance between the empirical distribution of `x` and the given one.
template <class Cdf>
double kolmogorov_distance(std::vector<float> x, Cdf&& cdf) {
  std::sort(x.begin(), x.end());
  double worst = 0;
  const double n = double(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double f = cdf(double(x[i]));
    worst = std::max({worst, std::abs(f - double(i) / n), std::abs(f - double(i + 1) / n)});
  }
  return worst;
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

}  // namespace

// The known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST_CASE("philox gives the published known answers") {
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Words4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        Words4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("a draw does not depend on the number of threads") {
  const int before = num_threads();
  const auto draw = [](int threads) {
    set_threads(threads);
    Rng rng{123, 7};
    auto all = values(randn({50001}, rng));
    const auto u = values(rand_uniform({3, 20011}, -1, 2, rng));
    all.insert(all.end(), u.begin(), u.end());
    return all;
  };
  const auto one = draw(1);
  for (int threads : {2, 3, 8}) CHECK(draw(threads) == one);
  set_threads(before);
}

TEST_CASE("drawing in pieces gives the numbers of one draw") {
  for (uint64_t offset : {0ull, 1ull, 5ull, (1ull << 33) + 3}) {
    Rng whole{99, offset}, pieces{99, offset};
    const auto all = values(randn({1000}, whole));
    std::vector<float> joined;
    for (int64_t n : {1, 2, 3, 7, 500, 487})
      for (float x : values(randn({n}, pieces))) joined.push_back(x);
    CHECK(joined == all);
    CHECK(whole.offset == offset + 1000);
    CHECK(pieces.offset == whole.offset);
  }
  Rng scalar{4, 0}, tensor{4, 0};
  const auto all = values(randn({64}, tensor));
  for (float x : all) CHECK(float(scalar.normal()) == x);
}

TEST_CASE("a copied generator repeats, a resumed one continues, a forked one is another stream") {
  Rng a{5, 0};
  Rng copy = a;
  CHECK(a.bits() == copy.bits());
  const Rng saved{a.seed, a.offset};
  const auto next = values(randn({10}, a));
  Rng resumed = saved;
  CHECK(values(randn({10}, resumed)) == next);

  const Rng parent{5, 1000};
  Rng f0 = parent.fork(0), f1 = parent.fork(1), again = parent.fork(0);
  CHECK(parent.offset == 1000);
  const auto x0 = values(randn({4096}, f0)), x1 = values(randn({4096}, f1));
  CHECK(values(randn({4096}, again)) == x0);
  Rng p = parent;
  const auto xp = values(randn({4096}, p));
  const auto correlation = [](const std::vector<float>& x, const std::vector<float>& y) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += double(x[i]) * double(y[i]);
    return std::abs(sum) / double(x.size());
  };
  // The standard deviation of a correlation of 4096 independent pairs is 1/64.
  CHECK(correlation(x0, x1) < 4.5 / 64);
  CHECK(correlation(x0, xp) < 4.5 / 64);
}

TEST_CASE("normal numbers have the moments and the distribution of N(0, 1)") {
  Rng rng{2024, 0};
  const int64_t n = 1 << 20;
  const auto x = values(randn({n}, rng));
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, neighbours = 0, largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = double(x[i]);
    REQUIRE(std::isfinite(v));
    m1 += v;
    m2 += v * v;
    m3 += v * v * v;
    m4 += v * v * v * v;
    largest = std::max(largest, std::abs(v));
    if (i > 0) neighbours += v * double(x[i - 1]);
  }
  // Standard deviations of these means: 1, sqrt(2), sqrt(15), sqrt(96) and 1, over sqrt(n).
  const double root = std::sqrt(double(n));
  CHECK(std::abs(m1 / double(n)) < 4.5 / root);
  CHECK(std::abs(m2 / double(n) - 1) < 4.5 * std::sqrt(2.0) / root);
  CHECK(std::abs(m3 / double(n)) < 4.5 * std::sqrt(15.0) / root);
  CHECK(std::abs(m4 / double(n) - 3) < 4.5 * std::sqrt(96.0) / root);
  CHECK(std::abs(neighbours / double(n)) < 4.5 / root);
  CHECK(largest > 4.2);
  CHECK(largest < 6.7);
  CHECK(kolmogorov_distance(x, normal_cdf) < 2.2 / root);
}

TEST_CASE("uniform numbers fill [a, b) evenly") {
  Rng rng{7, 0};
  const int64_t n = 1 << 19;
  const auto x = values(rand_uniform({n}, -3, 5, rng));
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  CHECK(*low >= -3.0f);
  CHECK(*high < 5.0f);
  CHECK(*low < -2.999f);
  CHECK(*high > 4.999f);
  CHECK(kolmogorov_distance(x, [](double v) { return (v + 3) / 8; }) < 2.2 / std::sqrt(double(n)));
}

TEST_CASE("scalar draws stay in range") {
  Rng rng{11, 0};
  std::array<int, 7> counts{};
  for (int i = 0; i < 70000; ++i) {
    const double u = rng.uniform();
    REQUIRE((u >= 0 && u < 1));
    const int64_t k = rng.below(7);
    REQUIRE((k >= 0 && k < 7));
    ++counts[size_t(k)];
  }
  double chi2 = 0;
  for (int c : counts) chi2 += (c - 10000.0) * (c - 10000.0) / 10000.0;
  CHECK(chi2 < 27.9);  // 6 degrees of freedom, p = 1e-4
  CHECK(rng.offset == 140000);
  CHECK_THROWS_AS(rng.below(0), Error);
}

TEST_CASE("other dtypes are the f32 numbers, converted") {
  Rng a{1, 0}, b{1, 0}, c{1, 0};
  const Tensor f = randn({101}, a), d = randn({101}, b, DType::f64), h = randn({101}, c, DType::bf16);
  for (int64_t i = 0; i < 101; ++i) {
    CHECK(d.data<double>()[i] == double(f.data<float>()[i]));
    CHECK(float(h.data<bf16>()[i]) == float(bf16(f.data<float>()[i])));
  }
}

// Written down once: a change of any bit here would change every seeded result of the project.
TEST_CASE("the first numbers of a seed are fixed") {
  Rng rng{42, 0};
  Rng copy = rng;
  const Words4 block = philox4x32({0, 0, 0, 0}, {42, 0});
  for (uint32_t word : block) CHECK(copy.bits() == word);
  // Box-Muller in double precision on the same Philox words, as the reference for the f32 polynomials.
  const auto x = values(randn({4096}, rng));
  for (uint32_t j = 0; j < 2048; ++j) {
    const Words4 r = philox4x32({j, 0, 1, 0}, {42, 0});
    const double radius = std::sqrt(-2 * std::log((double(r[0]) + 1) * 0x1p-32));
    const double turn = 2 * M_PI * double(r[1]) * 0x1p-32;
    CHECK(double(x[2 * j]) == doctest::Approx(radius * std::cos(turn)).epsilon(1e-5).scale(1));
    CHECK(double(x[2 * j + 1]) == doctest::Approx(radius * std::sin(turn)).epsilon(1e-5).scale(1));
  }
}
