// The small formats against their definitions and, where its headers are present, against the CUDA toolkit's
// host conversions; matrices of them; the GPU's bits against the CPU's.
#include "ops/quantize.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <set>

#include "op_fixtures.h"
#include "ops/elementwise.h"
#include "ops/formats.h"
#include "ops/matmul.h"
#include "ops/quantized_linear.h"
#include "ops/reduce.h"
#include "tensor/cuda.h"
#ifdef RIVULET_CUDA_HEADERS
#include <cuda_fp4.h>
#include <cuda_fp8.h>
#endif

using namespace rivulet;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();
const Format kAll[] = {Format::fp8_tensor, Format::fp8,      Format::mxfp8,
                       Format::nvfp4,      Format::nvfp4_46, Format::nvfp4_swept};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// The finite values of a format in rising order with their codes, sign bit clear.
struct Grid {
  std::vector<std::pair<float, uint8_t>> points;
  Grid(int codes, float (*value)(uint8_t)) {
    for (int c = 0; c < codes; ++c)
      if (std::isfinite(value(uint8_t(c)))) points.emplace_back(value(uint8_t(c)), uint8_t(c));
    std::sort(points.begin(), points.end());
  }
  // The nearest, of two as near the even code.
  uint8_t nearest(float a) const {
    size_t i = 0;
    while (i + 1 < points.size() && points[i + 1].first <= a) ++i;
    if (i + 1 == points.size()) return points[i].second;
    const double below = double(a) - points[i].first, above = double(points[i + 1].first) - a;
    if (below != above) return points[below < above ? i : i + 1].second;
    return points[points[i].second % 2 == 0 ? i : i + 1].second;
  }
};

void check_format(int codes, uint8_t sign, uint8_t nan_code, uint8_t (*code)(float),
                  float (*value)(uint8_t)) {
  const Grid grid(codes, value);
  for (const auto& [v, c] : grid.points) {
    CHECK(code(v) == c);
    CHECK(code(-v) == (c | sign));
    CHECK(same_bits(value(uint8_t(c | sign)), -v));
  }
  for (size_t i = 0; i + 1 < grid.points.size(); ++i) {
    const float middle = (grid.points[i].first + grid.points[i + 1].first) / 2;
    for (const float x : {middle, std::nextafter(middle, 0.f), std::nextafter(middle, kInf)}) {
      CHECK(code(x) == grid.nearest(x));
      CHECK(code(-x) == (grid.nearest(x) | sign));
    }
  }
  const uint8_t top = grid.points.back().second;
  for (const float x : {grid.points.back().first * 1.03f, grid.points.back().first * 4, 3e38f, kInf}) {
    CHECK(code(x) == top);
    CHECK(code(-x) == (top | sign));
  }
  CHECK(code(kNan) == nan_code);
  CHECK(code(-kNan) == nan_code);
}

}  // namespace

TEST_CASE("formats: every code point, tie and end") {
  check_format(8, 8, 7, e2m1_of, e2m1_value);
  check_format(127, 0x80, 0x7f, e4m3_of, e4m3_value);
  check_format(124, 0x80, 0x7f, e5m2_of, e5m2_value);
  CHECK(std::isnan(e4m3_value(0x7f)));
  CHECK(std::isinf(e5m2_value(0x7c)));
  for (int c = 0; c < 255; ++c) {
    const float v = e8m0_value(uint8_t(c));
    CHECK(v == std::ldexp(1.0, c - 127));
    CHECK(e8m0_of(v) == c);
    CHECK(e8m0_of(std::nextafter(v, kInf)) == std::min(c + 1, 254));
    CHECK(e8m0_of(std::nextafter(v, 0.f)) == c);
  }
  CHECK(e8m0_of(0) == 0);
  CHECK(e8m0_of(kInf) == 254);
  CHECK(e8m0_of(kNan) == 255);
  CHECK(std::isnan(e8m0_value(255)));
}

TEST_CASE("formats: rounding in one step is encoding and decoding") {
  int64_t different = 0;
  const auto compare = [&](float x) {
    different += !same_bits(e2m1_rounded(x), e2m1_value(e2m1_of(x)));
    const float y = e4m3_rounded(x), z = e4m3_value(e4m3_of(x));
    different += std::isnan(x) ? !std::isnan(y) || !std::isnan(z) : !same_bits(y, z);
  };
  for (const float x : {0.f, -0.f, kInf, -kInf, kNan, 1e-45f, 3.4e38f, 448.f, 464.f, 0x1p-10f, 5.f})
    compare(x);
  // Every float of 16 bits, and its neighbours: all ties are among them.
  for (uint32_t high = 0; high < 65536; ++high)
    for (const uint32_t low : {0u, 1u, 0xffffu}) compare(bits_as<float>(high << 16 | low));
  CHECK(different == 0);
}

TEST_CASE("formats: a value of every scale times every E2M1 value is a bf16") {
  std::set<float> products;
  for (int s = 0; s < 127; ++s)
    for (int q = 0; q < 8; ++q) {
      const float p = e4m3_value(uint8_t(s)) * e2m1_value(uint8_t(q));
      CHECK(float(bf16(p)) == p);
    }
}

TEST_CASE("formats: the toolkit's host conversions, 5 million values") {
#ifdef RIVULET_CUDA_HEADERS
  const auto differs = [](float x) {
    const float a = std::fabs(x);
    return int(e2m1_of(x) != __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest)) +
           int(e4m3_of(x) != __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)) +
           int(e5m2_of(x) != __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2)) +
           int(e8m0_of(a) != __nv_cvt_float_to_e8m0(a, __NV_SATFINITE, cudaRoundPosInf));
  };
  int64_t different = 0;
  for (const float x : {0.f, -0.f, kInf, -kInf, kNan, 1e-45f, 3.4e38f, -3.4e38f}) different += differs(x);
  Rng rng(5);
  for (int round = 0; round < 10; ++round) {
    // Half of them bit patterns of any size, half in the range of the formats.
    const Tensor words = rand_uniform({250000}, 0, 4294967296.0, rng, DType::f64);
    const Tensor near = randn({250000}, rng) * std::ldexp(1.0, 2 * round - 10);
    for (int64_t i = 0; i < 250000; ++i) {
      different += differs(bits_as<float>(uint32_t(words.data<double>()[i])));
      different += differs(near.data<float>()[i]);
    }
  }
  CHECK(different == 0);
#else
  MESSAGE("no CUDA headers: the toolkit's conversions were not compared");
#endif
}

TEST_CASE("quantize: a matrix by its definition") {
  Rng rng(1);
  for (const Format f : kAll)
    for (const Shape& shape : {Shape{5, 64}, Shape{3, 7}, Shape{1, 1}, Shape{4, 41}, Shape{2, 3, 48}}) {
      CAPTURE(std::string(name_of(f)));
      const Tensor x = randn(shape, rng) * 3.0;
      const QuantizedMatrix q = quantize(x, f);
      const Tensor back = dequantize(q).reshape(shape), fake = fake_quantize(x, f);
      CHECK(distance(fake, back) == 0);
      CHECK(distance(fake_quantize(x.to(DType::f64), f), back) == 0);
      const double error = distance(fake, x);
      CHECK(error < (is_fp4(f) ? 0.25 : 0.0625));  // half of the last bit
      CHECK((error > 0 || x.numel() == 1));
      // Codes and group scales alone, times what was left out.
      Tensor whole = unscaled(q).to(DType::f32);
      if (q.global) whole = whole * double(q.global.data<float>()[0]);
      if (f == Format::fp8) whole = whole * q.scales.unsqueeze(1);
      if (f == Format::fp8_tensor) whole = whole * q.scales.to_vector()[0];
      CHECK(distance(whole.reshape(shape), back) < 1e-6);
    }
}

TEST_CASE("quantize: what sits on the grid stays, and better scales lose less") {
  Rng rng(2);
  std::vector<double> values;
  for (int i = 0; i < 64; ++i) values.push_back(e2m1_value(uint8_t(i % 16)) * (i < 32 ? 1.0 : 0.5) * 448);
  const Tensor grid = Tensor::of(values, {2, 32});
  CHECK(distance(fake_quantize(grid, Format::nvfp4), grid) < 1e-7);
  const Tensor w = randn({64, 512}, rng);
  const auto square = [&](Format f) {
    double sum = 0;
    for (const double e : (fake_quantize(w, f) - w).to_vector()) sum += e * e;
    return sum / double(w.numel());
  };
  const double plain = square(Format::nvfp4), better = square(Format::nvfp4_46);
  const double swept = square(Format::nvfp4_swept), fp8 = square(Format::fp8);
  CHECK(swept < 0.95 * better);
  CHECK(better < 0.95 * plain);
  CHECK(fp8 < 0.15 * swept);
  CHECK(std::sqrt(plain) == doctest::Approx(0.095).epsilon(0.1));  // precision.md 1.6
}

TEST_CASE("quantize: zeros, infinities and NaN") {
  for (const Format f : kAll) {
    CAPTURE(std::string(name_of(f)));
    const Tensor none = zeros({3, 40});
    for (const double v : dequantize(quantize(none, f)).to_vector()) CHECK(v == 0);
    Tensor x = ones({2, 64});
    x.data<float>()[3] = kInf;
    x.data<float>()[40] = -kInf;
    x.data<float>()[70] = kNan;
    const std::vector<double> y = fake_quantize(x, f).to_vector();
    for (size_t i = 0; i < y.size(); ++i) {
      if (i == 70) {
        CHECK((is_fp4(f) ? y[i] == doctest::Approx(1) : std::isnan(y[i])));
      } else {
        // amax is 1, so 1 has the largest code, but for scales rounded up to a power of two.
        const double largest = f == Format::mxfp8 ? 1.75 : 1;
        CHECK(y[i] == doctest::Approx(i == 3 ? largest : i == 40 ? -largest : 1));
      }
    }
  }
}

TEST_CASE("quantize: a known global scale, and the gradient goes straight through") {
  Tensor x = Tensor::of({0.1, -0.2, 0.3, 5}, {1, 4});
  const Tensor global = Tensor::of({1.0 / 2688}, {1});
  CHECK(dequantize(quantize(x, Format::nvfp4, global)).to_vector()[3] == doctest::Approx(1));
  x.set_requires_grad();
  backward(fake_quantize(x, Format::nvfp4), Tensor::of({1, 2, 3, 4}, {1, 4}));
  CHECK(x.grad().to_vector() == std::vector<double>{1, 2, 3, 4});
  CHECK(error_of([&] { quantize(x, Format::bf16); }).find("bf16") != std::string::npos);
  CHECK(error_of([&] { format_named("fp5"); }).find("nvfp4_swept") != std::string::npos);
  check_same_for_any_threads([] {
    Rng rng(3);
    return Tensors{fake_quantize(randn({300, 500}, rng), Format::nvfp4_46)};
  });
}

TEST_CASE("quantize: swizzled scales, all places") {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {130, 7}, {256, 140}, {384, 9}}) {
    Tensor scales({rows, columns}, DType::u8);
    for (int64_t i = 0; i < scales.numel(); ++i) scales.data<uint8_t>()[i] = uint8_t(1 + i % 251);
    const Tensor out = swizzle_scales(scales);
    // An atom of 512 bytes holds 128 rows by 4 scales: 32 lines of 16 bytes, each of four rows 32 apart.
    const int64_t tiles = (columns + 3) / 4;
    CHECK(out.numel() == (rows + 127) / 128 * tiles * 512);
    int64_t wrong = 0;
    for (int64_t i = 0; i < out.numel(); ++i) {
      const int64_t atom = i / 512, line = i % 512 / 16, quarter = i % 16 / 4;
      const int64_t r = atom / tiles * 128 + quarter * 32 + line, c = atom % tiles * 4 + i % 4;
      const uint8_t want = r < rows && c < columns ? scales.data<uint8_t>()[r * columns + c] : 0;
      wrong += out.data<uint8_t>()[i] != want;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("quantized_linear: the product of what the codes stand for") {
  Rng rng(6);
  const Tensor x = randn({9, 80}, rng), w = randn({33, 80}, rng), bias = randn({33}, rng),
               more = randn({9, 33}, rng);
  for (const Format f : kAll) {
    CAPTURE(std::string(name_of(f)));
    const QuantizedMatrix qx = quantize(x, f == Format::nvfp4_swept ? Format::nvfp4 : f), qw = quantize(w, f);
    const Tensor want = linear_add(dequantize(qx, DType::f64), dequantize(qw, DType::f64),
                                   bias.to(DType::f64), more.to(DType::f64));
    CHECK(distance(quantized_linear(qx, qw, bias, more), want) < 1e-5);
    CHECK(distance(
              quantized_linear(rows_of(qx, 3, 4), rows_of(qw, 1, 20)),
              linear(dequantize(qx, DType::f64), dequantize(qw, DType::f64)).slice(0, 3, 7).slice(1, 1, 21)) <
          1e-5);
    CHECK_THROWS_AS(quantized_linear(qx, qw, {}, {}, DType::f32, {ProductOptions::Execution::native}), Error);
  }
  CHECK_THROWS_AS(quantized_linear(quantize(x, Format::fp8), quantize(w, Format::mxfp8)), Error);
}

TEST_CASE("quantized_linear: on the GPU, by its own units and emulated") {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  Rng rng(8);
  const Tensor x = randn({130, 2240}, rng).to(DType::bf16), w = randn({272, 2240}, rng).to(DType::bf16);
  const Tensor bias = randn({272}, rng).to(DType::bf16), more = randn({130, 272}, rng).to(DType::bf16);
  for (const Format f : kAll) {
    CAPTURE(std::string(name_of(f)));
    const QuantizedMatrix qx = quantize(x.to(Device::cuda), f), qw = quantize(w.to(Device::cuda), f);
    const Tensor want =
        linear_add(dequantize(quantize(x, f), DType::f64), dequantize(quantize(w, f), DType::f64),
                   bias.to(DType::f64), more.to(DType::f64));
    const Tensor b = bias.to(Device::cuda), e = more.to(Device::cuda);
    const auto error = [&](const ProductOptions& o, DType t) {
      return distance(quantized_linear(qx, qw, b.to(t), e.to(t), t, o).to(Device::cpu).to(DType::f64), want);
    };
    using Execution = ProductOptions::Execution;
    CHECK(error({Execution::emulated}, DType::f32) < 2e-5);
    CHECK(error({Execution::emulated}, DType::bf16) < 4e-3);
    CHECK(error({Execution::automatic, false}, DType::bf16) < 5e-3);
    CHECK(error({Execution::automatic, true}, DType::bf16) < 1e-2);
    if (!runs_natively(f, Device::cuda)) {
      const std::string text = error_of([&] { error({Execution::native}, DType::bf16); });
      CHECK(text.find(name_of(f)) != std::string::npos);
    }
  }
}

TEST_CASE("quantize: the GPU gives the CPU's bits") {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  Rng rng(4);
  const auto same = [](const Tensor& a, const Tensor& b) {
    if (!a && !b) return true;
    return a.shape() == b.shape() && a.to(Device::cpu).to_vector() == b.to_vector();
  };
  for (const Format f : kAll)
    for (const Shape& shape : {Shape{5, 64}, Shape{3, 7}, Shape{130, 2240}, Shape{4, 41}, Shape{64, 6720}}) {
      CAPTURE(std::string(name_of(f)));
      const Tensor x = (randn(shape, rng) * 2.0).to(DType::bf16), there = x.to(Device::cuda);
      const QuantizedMatrix want = quantize(x, f), got = quantize(there, f);
      CHECK(same(got.codes, want.codes));
      CHECK(same(got.scales, want.scales));
      CHECK(same(got.global, want.global));
      CHECK(same(dequantize(got), dequantize(want)));
      CHECK(same(unscaled(got), unscaled(want)));
      CHECK(same(fake_quantize(there.to(DType::f32), f), fake_quantize(x.to(DType::f32), f)));
      if (group_of(f)) CHECK(same(swizzle_scales(got.scales), swizzle_scales(want.scales)));
    }
}
