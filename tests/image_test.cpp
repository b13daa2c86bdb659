// Resizing, cropping, number formats and colour spaces.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "ops/image.h"

using namespace rivulet;

namespace {

double largest_difference(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const auto x = a.to_vector(), y = b.to_vector();
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(x[i] - y[i]));
  return worst;
}

}  // namespace

TEST_CASE("resize keeps constants at every size, and everything at the same size") {
  Rng rng{1};
  const Tensor flat = full({2, 7, 5, 3}, 0.3, DType::f64);
  for (const auto& [h, w] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {3, 11}, {7, 5}, {20, 2}, {64, 64}})
    CHECK(largest_difference(resize(flat, h, w), full({2, h, w, 3}, 0.3, DType::f64)) < 1e-14);
  const Tensor x = randn({2, 7, 5, 3}, rng);
  CHECK(largest_difference(resize(x, 7, 5), x) == 0);
}

TEST_CASE("resize maps a linear ramp to the ramp between pixel centres") {
  Tensor ramp({1, 1, 24, 1}, DType::f64);
  for (int i = 0; i < 24; ++i) ramp.data<double>()[i] = i;
  for (const int64_t n : {8, 12, 36, 50}) {
    const auto y = resize(ramp, 1, n).to_vector();
    for (int64_t o = 0; o < n; ++o) {
      const double centre = (double(o) + 0.5) * 24 / double(n) - 0.5;
      // Where the triangle fits in, linear interpolation is exact.
      const double reach = std::max(1.0, 24.0 / double(n));
      if (centre - reach >= 0 && centre + reach <= 23) CHECK(y[o] == doctest::Approx(centre).epsilon(1e-12));
    }
    CHECK(y[n / 2] > y[n / 2 - 1]);
  }
}

TEST_CASE("resize: known weights for a halving and a doubling") {
  const Tensor x = Tensor::of({0, 0, 0, 8, 0, 0, 0, 0}, {1, 1, 8, 1}, DType::f64);
  CHECK(largest_difference(resize(x, 1, 4), Tensor::of({0, 3, 1, 0}, {1, 1, 4, 1}, DType::f64)) < 1e-14);
  const Tensor two = Tensor::of({0, 4}, {1, 2, 1, 1}, DType::f64);
  CHECK(largest_difference(resize(two, 4, 1), Tensor::of({0, 1, 3, 4}, {1, 4, 1, 1}, DType::f64)) < 1e-14);
}

TEST_CASE("resize of a shrinking checkerboard is grey: no pixel is skipped") {
  Tensor x = zeros({1, 32, 32, 1}, DType::f64);
  for (int i = 0; i < 1024; ++i) x.data<double>()[i] = (i / 32 + i) % 2;
  const Tensor y = resize(x, 4, 4);
  // At the border the triangle is cut off, which tilts the balance of light and dark a little.
  for (double v : y.to_vector()) CHECK(std::abs(v - 0.5) < 1e-3);
  for (double v : crop(y, 1, 1, 2, 2).to_vector()) CHECK(std::abs(v - 0.5) < 1e-14);
}

TEST_CASE("the transposed resampling is the transpose") {
  for (const auto& [n, m] :
       std::vector<std::pair<int64_t, int64_t>>{{9, 4}, {4, 9}, {5, 5}, {1, 3}, {7, 1}}) {
    const auto dense = [](const Resampling& r, int64_t rows, int64_t columns) {
      std::vector<std::vector<double>> out(rows, std::vector<double>(columns));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = r.offset[i]; k < r.offset[i + 1]; ++k)
          out[i][r.first[i] + k - r.offset[i]] = r.weights[k];
      return out;
    };
    const auto a = dense(resampling(n, m, false), m, n), t = dense(resampling(n, m, true), n, m);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) CHECK(a[i][j] == t[j][i]);
  }
}

TEST_CASE("crop is the window asked for and refuses to leave the picture") {
  Rng rng{2};
  const Tensor x = randn({2, 6, 5, 3}, rng);
  const Tensor y = crop(x, 1, 2, 4, 3);
  CHECK(y.shape() == Shape{2, 4, 3, 3});
  CHECK(y.select(0, 1).select(0, 0).select(0, 0).to_vector() ==
        x.select(0, 1).select(0, 1).select(0, 2).to_vector());
  CHECK_THROWS_WITH_AS(crop(x, 3, 0, 4, 5), "crop: 4 x 5 at 3, 0 is not inside [2, 6, 5, 3]", Error);
  CHECK_THROWS_AS(crop(x, -1, 0, 2, 2), Error);
}

TEST_CASE("u8 to unit and back is exact; out-of-range values are clamped, NaN is 0") {
  Tensor all({256}, DType::u8);
  for (int i = 0; i < 256; ++i) all.data<uint8_t>()[i] = uint8_t(i);
  const Tensor unit = u8_to_unit(all);
  CHECK(unit.to_vector()[255] == 1);
  CHECK(unit_to_u8(unit).to_vector() == all.to_vector());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor odd = unit_to_u8(Tensor::of({-0.5, 1.5, nan, 0.5, 1e30}, {5}));
  CHECK(odd.to_vector() == std::vector<double>{0, 255, 0, 128, 255});
}

TEST_CASE("YCbCr: known colours, and there and back") {
  const Tensor rgb = Tensor::of({1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1}, {4, 3}, DType::f64);
  const Tensor want =
      Tensor::of({1, 0.5, 0.5, 0, 0.5, 0.5, 0.299, 0.5 - 0.299 / 1.772, 1, 0.114, 1, 0.5 - 0.114 / 1.402},
                 {4, 3}, DType::f64);
  CHECK(largest_difference(rgb_to_ycbcr(rgb), want) < 1e-15);
  Rng rng{3};
  const Tensor x = rand_uniform({50, 3}, 0, 1, rng, DType::f64);
  CHECK(largest_difference(ycbcr_to_rgb(rgb_to_ycbcr(x)), x) < 1e-14);
}

TEST_CASE("HSV: known colours, greys, and there and back") {
  const Tensor rgb =
      Tensor::of({1, 0, 0, 0, 1, 0, 0, 0, 1, 0.5, 0.5, 0.5, 0, 0, 0, 1, 0, 0.5}, {6, 3}, DType::f64);
  const Tensor want = Tensor::of({0, 1, 1, 1. / 3, 1, 1, 2. / 3, 1, 1, 0, 0, 0.5, 0, 0, 0, 11. / 12, 1, 1},
                                 {6, 3}, DType::f64);
  CHECK(largest_difference(rgb_to_hsv(rgb), want) < 1e-15);
  Tensor cube({17 * 17 * 17, 3}, DType::f64);
  for (int i = 0; i < 17 * 17 * 17; ++i)
    for (int c = 0; c < 3; ++c)
      cube.data<double>()[3 * i + c] = (i / (c == 0 ? 1 : c == 1 ? 17 : 289)) % 17 / 16.0;
  CHECK(largest_difference(hsv_to_rgb(rgb_to_hsv(cube)), cube) < 1e-14);
  CHECK(!rgb_to_hsv(Tensor(cube).set_requires_grad()).requires_grad());
}
