// Known answers and properties of the ops a video transformer is made of. Their gradients: gradcheck_test.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/depthwise_conv.h"
#include "ops/glu.h"
#include "ops/rope.h"
#include "ops/temporal_conv.h"
#include "tests/op_fixtures.h"

using namespace rivulet;

namespace {

// Softmax attention by its definition, one query at a time.
Tensor naive_attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                       const Tensor& mask = {}) {
  const Reader rq(q), rk(k), rv(v);
  Tensor out = zeros(q.shape(), DType::f64);
  double* to = out.data<double>();
  for (int64_t b = 0; b < q.dim(0); ++b)
    for (int64_t n = 0; n < q.dim(1); ++n)
      for (int64_t h = 0; h < q.dim(2); ++h, to += q.dim(3)) {
        std::vector<double> s(k.dim(1));
        double top = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int64_t m = 0; m < k.dim(1); ++m) {
          for (int64_t d = 0; d < q.dim(3); ++d) s[m] += scale * rq({b, n, h, d}) * rk({b, m, h, d});
          if (mask && !mask.data<uint8_t>()[b * k.dim(1) + m])
            s[m] = -std::numeric_limits<double>::infinity();
          top = std::max(top, s[m]);
        }
        if (std::isinf(top)) continue;
        for (double& x : s) sum += x = std::exp(x - top);
        for (int64_t m = 0; m < k.dim(1); ++m)
          for (int64_t d = 0; d < q.dim(3); ++d) to[d] += s[m] / sum * rv({b, m, h, d});
      }
  return out;
}

}  // namespace

TEST_CASE("attention equals softmax by its definition, over several tiles") {
  Rng rng{1};
  for (const auto& [n, m, d] : std::vector<std::array<int64_t, 3>>{{67, 300, 5}, {1, 1, 1}, {130, 7, 33}}) {
    const Tensor q = randn({2, n, 3, d}, rng, DType::f64), k = randn({2, m, 3, d}, rng, DType::f64);
    const Tensor v = randn({2, m, 3, d}, rng, DType::f64);
    const Tensor want = naive_attention(q, k, v, 0.3);
    CHECK(distance(attention(q, k, v, 0.3), want) < 1e-13);
    const auto f32 = [](const Tensor& x) { return x.to(DType::f32); };
    CHECK(distance(attention(f32(q), f32(k), f32(v), 0.3), want) < 2e-6);
  }
}

TEST_CASE("attention reads slices of a fused tensor in place and survives huge scores") {
  Rng rng{2};
  const Tensor qkv = scaled(randn({2, 40, 3, 2, 6}, rng), 30);
  const Tensor q = qkv.select(2, 0), k = qkv.select(2, 1), v = qkv.select(2, 2);
  REQUIRE(!q.is_contiguous());
  CHECK(distance(attention(q, k, v, 1), naive_attention(q, k, v, 1)) < 1e-4);
  const Tensor dense = attention(q.contiguous(), k.contiguous(), v.contiguous(), 1);
  CHECK(attention(q, k, v, 1).to_vector() == dense.to_vector());
  // A last dim that is not dense: computed on a copy.
  const Tensor t = randn({1, 2, 4, 9}, rng).transpose(1, 3);
  CHECK(distance(attention(t, t, t, 0.5), naive_attention(t, t, t, 0.5)) < 2e-6);
}

TEST_CASE("attention: masked keys have no weight, a fully masked row is zero and passes no gradient") {
  Rng rng{3};
  Tensor mask = ones({2, 9}, DType::u8);
  mask.slice(0, 0, 1).slice(1, 4, 9).fill(0);
  mask.slice(0, 1, 2).fill(0);
  const Tensors in = {randn({2, 5, 2, 4}, rng), randn({2, 9, 2, 4}, rng), randn({2, 9, 2, 4}, rng)};
  const Tensors r = with_gradients(
      in, [&](const Tensors& x) -> Tensors { return {attention(x[0], x[1], x[2], 0.5, mask)}; });
  CHECK(distance(r[0], naive_attention(in[0], in[1], in[2], 0.5, mask)) < 2e-6);
  const Tensor kept = attention(in[0].slice(0, 0, 1), in[1].slice(0, 0, 1).slice(1, 0, 4),
                                in[2].slice(0, 0, 1).slice(1, 0, 4), 0.5);
  CHECK(distance(r[0].slice(0, 0, 1), kept) < 2e-6);
  for (const Tensor& y : r)
    for (double x : y.slice(0, 1, 2).to_vector()) CHECK(x == 0);
  for (double x : r[2].slice(0, 0, 1).slice(1, 4, 9).to_vector()) CHECK(x == 0);
}

TEST_CASE("attention: keys and values in several tensors count as joined ones, and each gets its gradient") {
  Rng rng{5};
  const Tensors in = {randn({2, 5, 2, 4}, rng), randn({2, 9, 2, 4}, rng), randn({2, 9, 2, 4}, rng)};
  const auto parts = [](const Tensor& x) -> Tensors {
    return {x.slice(1, 0, 4), x.slice(1, 4, 5), x.slice(1, 5, 9)};
  };
  Tensor mask = ones({2, 9}, DType::u8);
  mask.slice(0, 1, 2).slice(1, 3, 6).fill(0);
  for (const Tensor& m : {Tensor(), mask}) {
    const Tensors joined = with_gradients(
        in, [&](const Tensors& x) -> Tensors { return {attention(x[0], x[1], x[2], 0.5, m)}; });
    const Tensors cut = with_gradients(
        in, [&](const Tensors& x) -> Tensors { return {attention(x[0], parts(x[1]), parts(x[2]), 0.5, m)}; });
    for (size_t i = 0; i < joined.size(); ++i) CHECK(distance(cut[i], joined[i]) < 1e-6);
  }
  CHECK_THROWS_WITH_AS(attention(in[0], parts(in[1]), {in[2]}, 0.5),
                       "attention: got 3 tensors of keys and 1 of values", Error);
  CHECK_THROWS_WITH_AS(attention(in[0], parts(in[1]), parts(in[2]), 0.5, ones({2, 4}, DType::u8)),
                       "attention: key_mask has shape [2, 4] for 9 keys and q [2, 5, 2, 4]", Error);
}

TEST_CASE("attention: gradients summed over several chunks of keys equal the softmax rule") {
  Rng rng{4};
  const int64_t n = 66, m = 2100, d = 3;
  const Tensors in = {randn({1, n, 1, d}, rng, DType::f64), randn({1, m, 1, d}, rng, DType::f64),
                      randn({1, m, 1, d}, rng, DType::f64)};
  const Tensors r =
      with_gradients(in, [](const Tensors& x) -> Tensors { return {attention(x[0], x[1], x[2], 0.7)}; });
  const Reader q(in[0]), k(in[1]), v(in[2]), out(r[0]);
  Tensor dq = zeros_like(in[0]), dk = zeros_like(in[1]), dv = zeros_like(in[2]);
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> p(m);
    double sum = 0, delta = 0;
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t c = 0; c < d; ++c) p[j] += 0.7 * q({0, i, 0, c}) * k({0, j, 0, c});
      sum += p[j] = std::exp(p[j]);
    }
    for (int64_t c = 0; c < d; ++c) delta += out({0, i, 0, c});
    for (int64_t j = 0; j < m; ++j) {
      double ds = -delta;
      for (int64_t c = 0; c < d; ++c) ds += v({0, j, 0, c});
      ds *= 0.7 * p[j] / sum;
      for (int64_t c = 0; c < d; ++c) {
        dq.data<double>()[i * d + c] += ds * k({0, j, 0, c});
        dk.data<double>()[j * d + c] += ds * q({0, i, 0, c});
        dv.data<double>()[j * d + c] += p[j] / sum;
      }
    }
  }
  CHECK(distance(r[1], dq) < 1e-12);
  CHECK(distance(r[2], dk) < 1e-12);
  CHECK(distance(r[3], dv) < 1e-12);
}

TEST_CASE("rope keeps lengths, and dot products see only the difference of positions") {
  Rng rng{5};
  const Tensor x = randn({1, 24, 2, 16}, rng, DType::f64);
  const auto [cos, sin] = rope_table(7, 2, 3, 4, 16, DType::f64);
  const Tensor y = rope(x, cos, sin);
  const Reader rx(x), ry(y);
  for (int64_t n = 0; n < 24; ++n) {
    double before = 0, after = 0;
    for (int64_t d = 0; d < 16; ++d) {
      before += rx({0, n, 1, d}) * rx({0, n, 1, d});
      after += ry({0, n, 1, d}) * ry({0, n, 1, d});
    }
    CHECK(after == doctest::Approx(before).epsilon(1e-12));
  }
  // The same q and k everywhere: tokens one frame, row or column apart, at different places.
  const auto [c2, s2] = rope_table(100, 2, 3, 4, 16, DType::f64);
  const Tensor q = x.slice(1, 0, 1).expand({1, 24, 2, 16}), k = x.slice(1, 1, 2).expand({1, 24, 2, 16});
  const Reader q1(rope(q, cos, sin)), k1(rope(k, cos, sin)), q2(rope(q, c2, s2)), k2(rope(k, c2, s2));
  const auto score = [](const Reader& a, int64_t i, const Reader& b, int64_t j) {
    double sum = 0;
    for (int64_t d = 0; d < 16; ++d) sum += a({0, i, 0, d}) * b({0, j, 0, d});
    return sum;
  };
  for (int64_t step : {1, 4, 12, 17}) {  // column, row, frame, all three
    CHECK(score(q1, 0, k1, step) == doctest::Approx(score(q2, 0, k2, step)).epsilon(1e-10));
    CHECK(score(q1, 0, k1, step) == doctest::Approx(score(q1, 5, k1, 5 + step)).epsilon(1e-10));
  }
  CHECK(std::abs(score(q1, 0, k1, 1) - score(q1, 0, k1, 12)) > 1e-3);
}

TEST_CASE("rope tables: the split of the head, absolute frames, and f64 angles") {
  // D = 112 gives 20 + 18 + 18 pairs, D = 32 gives 6 + 5 + 5.
  for (const auto& [d, t] : std::vector<std::pair<int64_t, int64_t>>{{112, 20}, {32, 6}, {2, 1}}) {
    const int64_t s = (d / 2 - t) / 2;
    const auto [cos, sin] = rope_table(900, 2, 3, 4, d);
    const Reader c(cos), r(sin);
    const int64_t token = (1 * 3 + 2) * 4 + 3;  // frame 901, row 2, column 3
    for (int64_t j = 0; j < d / 2; ++j) {
      const int64_t axis = j < t ? 0 : j < t + s ? 1 : 2, i = j - (axis == 0 ? 0 : axis == 1 ? t : t + s);
      const double position = axis == 0 ? 901 : axis == 1 ? 2 : 3, pairs = double(axis == 0 ? t : s);
      const double angle = position * std::pow(10000.0, -double(i) / pairs);
      CHECK(c({token, j}) == double(float(std::cos(angle))));
      CHECK(r({token, j}) == double(float(std::sin(angle))));
    }
  }
  const auto [all, all_sin] = rope_table(0, 5, 2, 2, 12);
  const auto [late, late_sin] = rope_table(3, 2, 2, 2, 12);
  CHECK(all.slice(0, 12, 20).to_vector() == late.to_vector());
  CHECK(all_sin.slice(0, 12, 20).to_vector() == late_sin.to_vector());
}

TEST_CASE("depthwise 3x3 equals the sum by its definition") {
  Rng rng{10};
  const Tensor x = randn({2, 5, 4, 19}, rng), w = randn({19, 1, 3, 3}, rng), bias = randn({19}, rng);
  const Reader rx(x), rw(w), rb(bias);
  Tensor want = zeros(x.shape(), DType::f64);
  double* to = want.data<double>();
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t y = 0; y < 5; ++y)
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t c = 0; c < 19; ++c, ++to) {
          *to = rb({c});
          for (int64_t u = 0; u < 9; ++u)
            *to += rw({c, 0, u / 3, u % 3}) * rx({b, y + u / 3 - 1, i + u % 3 - 1, c});
        }
  CHECK(distance(depthwise_conv3x3(x, w, bias), want) < 1e-6);
}

TEST_CASE(
    "temporal conv: chunks with the carried frame equal the whole, but for the right neighbour at their "
    "end") {
  Rng rng{11};
  const Tensor r = randn({2, 5, 3, 4}, rng, DType::f64), w = randn({6, 4, 3, 1}, rng, DType::f64);
  const Tensor whole = temporal_conv3(r, w);
  const Reader rr(r), rw(w), rwhole(whole);
  const auto tap = [&](int64_t b, int64_t t, int64_t s, int64_t o, int64_t k) {
    double sum = 0;
    for (int64_t c = 0; c < 4; ++c) sum += rw({o, c, k, 0}) * rr({b, t + k - 1, s, c});
    return sum;
  };
  const Reader late(temporal_conv3(r.slice(1, 2, 4), w, r.select(1, 1)));
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t s = 0; s < 3; ++s)
      for (int64_t o = 0; o < 6; ++o) {
        for (int64_t t = 0; t < 5; ++t) {
          const double want = tap(b, t, s, o, 0) + tap(b, t, s, o, 1) + tap(b, t, s, o, 2);
          CHECK(rwhole({b, t, s, o}) == doctest::Approx(want).epsilon(1e-12));
        }
        CHECK(late({b, 0, s, o}) == doctest::Approx(rwhole({b, 2, s, o})).epsilon(1e-12));
        const double own = tap(b, 3, s, o, 0) + tap(b, 3, s, o, 1);
        CHECK(late({b, 1, s, o}) == doctest::Approx(own).epsilon(1e-12));
      }
}

TEST_CASE("conv3d and conv2d equal the sum by its definition, for strides and one-sided padding") {
  Rng rng{12};
  ConvSteps<3> steps;
  steps.stride = {1, 2, 3};
  steps.before = {2, 1, 0};
  steps.after = {0, 2, 1};
  const Tensor x = randn({2, 3, 5, 7, 3}, rng), w = randn({4, 3, 3, 2, 3}, rng), bias = randn({4}, rng);
  const Tensor y = conv3d(x, w, bias, steps);
  REQUIRE(y.shape() == Shape{2, 3, 4, 2, 4});
  const Reader rx(x), rw(w), rb(bias);
  Tensor want = zeros(y.shape(), DType::f64);
  double* to = want.data<double>();
  for (int64_t i = 0; i < y.numel() / 4; ++i)
    for (int64_t o = 0; o < 4; ++o, ++to) {
      const int64_t ox = i % 2, oy = i / 2 % 4, ot = i / 8 % 3, b = i / 24;
      *to = rb({o});
      for (int64_t c = 0; c < 3; ++c)
        for (int64_t u = 0; u < 3 * 2 * 3; ++u) {
          const int64_t ut = u / 6, uy = u / 3 % 2, ux = u % 3;
          *to += rw({o, c, ut, uy, ux}) * rx({b, ot + ut - 2, oy * 2 + uy - 1, ox * 3 + ux, c});
        }
    }
  CHECK(distance(y, want) < 1e-6);
  ConvSteps<2> flat;
  flat.stride = {2, 3};
  flat.before = {1, 0};
  flat.after = {2, 1};
  const Tensor image = x.select(1, 0), kernel = w.select(2, 0);
  CHECK(conv2d(image, kernel, bias, flat).to_vector() == conv3d(image.unsqueeze(1), kernel.unsqueeze(2), bias,
                                                                [&] {
                                                                  ConvSteps<3> s = steps;
                                                                  s.before[0] = 0;
                                                                  return s;
                                                                }())
                                                             .to_vector());
}

TEST_CASE("causal conv3d: a frame does not see the ones after it") {
  Rng rng{13};
  ConvSteps<3> causal(1, 1);
  causal.before[0] = 2;
  causal.after[0] = 0;
  Tensor x = randn({1, 4, 3, 3, 2}, rng);
  const Tensor w = randn({2, 2, 3, 3, 3}, rng), before = conv3d(x, w, {}, causal);
  x.slice(1, 3, 4).fill(9);
  const Tensor after = conv3d(x, w, {}, causal);
  CHECK(before.slice(1, 0, 3).to_vector() == after.slice(1, 0, 3).to_vector());
  CHECK(before.slice(1, 3, 4).to_vector() != after.slice(1, 3, 4).to_vector());
}

TEST_CASE("glu_silu: known answers and extreme gates") {
  const Tensor y = glu_silu(Tensor::of({2, -3, 1, 5, 0, 1, 200, -200}, {1, 8}));
  const double sigmoid_one = 1 / (1 + std::exp(-1.0));
  const auto v = y.to_vector();
  CHECK(v[0] == 0);
  CHECK(v[1] == doctest::Approx(-3 * sigmoid_one).epsilon(1e-6));
  CHECK(v[2] == doctest::Approx(200));
  CHECK(std::abs(v[3]) < 1e-30);
}

TEST_CASE("results and gradients are the same bits for any number of threads") {
  Rng rng{14};
  const auto f32 = [&](const Shape& s) { return randn(s, rng); };
  const Tensors qkv = {f32({1, 130, 2, 8}), f32({1, 2100, 2, 8}), f32({1, 2100, 2, 8})};
  check_same_for_any_threads([&] {
    return with_gradients(qkv,
                          [](const Tensors& x) -> Tensors { return {attention(x[0], x[1], x[2], 0.3)}; });
  });
  const Tensors depthwise = {f32({3, 20, 9, 24}), f32({24, 1, 3, 3}), f32({24})};
  check_same_for_any_threads([&] { return with_gradients(depthwise, depthwise_conv3x3_case().run); });
  const Tensors temporal = {f32({1, 3, 300, 70}), f32({70, 70, 3, 1}), f32({1, 300, 70})};
  check_same_for_any_threads([&] { return with_gradients(temporal, temporal_conv3_case().run); });
  const Tensors conv = {f32({2, 22, 30, 6}), f32({5, 6, 3, 3}), f32({5})};
  check_same_for_any_threads([&] { return with_gradients(conv, conv2d_case().run); });
}

TEST_CASE("half inputs give half outputs close to the f32 ones") {
  Rng rng{16};
  const auto f32 = [&](const Shape& s) { return randn(s, rng); };
  check_half(attention_case(), {f32({1, 5, 2, 8}), f32({1, 6, 2, 8}), f32({1, 6, 2, 8})});
  check_half(glu_silu_case(), {f32({3, 8})});
  check_half(depthwise_conv3x3_case(), {f32({1, 4, 4, 8}), f32({8, 1, 3, 3}), f32({8})});
  check_half(temporal_conv3_case(), {f32({1, 3, 4, 8}), f32({8, 8, 3, 1})});
  check_half(conv2d_case(), {f32({1, 4, 4, 8}), f32({8, 8, 3, 3}), f32({8})});
  check_half(rope_case(),
             {f32({1, 4, 2, 8}), rope_table(0, 4, 1, 1, 8).first, rope_table(0, 4, 1, 1, 8).second});
}

TEST_CASE("wrong shapes are refused with the shape in the message") {
  const Tensor x = zeros({1, 2, 3, 4});
  CHECK_THROWS_WITH_AS(attention(x, zeros({1, 5, 3, 6}), zeros({1, 5, 3, 6}), 1),
                       "attention: q has shape [1, 2, 3, 4], k [1, 5, 3, 6]", Error);
  CHECK_THROWS_AS(attention(x, x, x, 1, ones({1, 3}, DType::u8)), Error);
  CHECK_THROWS_AS(attention(x, x, x, 1, ones({1, 2})), Error);
  CHECK_THROWS_AS(rope(x, zeros({2, 3}), zeros({2, 3})), Error);
  CHECK_THROWS_AS(rope_table(0, 1, 1, 1, 7), Error);
  CHECK_THROWS_AS(depthwise_conv3x3(x, zeros({4, 1, 3, 2}), zeros({4})), Error);
  CHECK_THROWS_AS(temporal_conv3(x, zeros({4, 4, 3, 1}), zeros({1, 2, 4})), Error);
  CHECK_THROWS_AS(conv2d(x, zeros({4, 3, 1, 1})), Error);
  CHECK_THROWS_AS(conv2d(x, zeros({4, 4, 5, 5})), Error);
  CHECK_THROWS_AS(glu_silu(zeros({2, 3})), Error);
}
