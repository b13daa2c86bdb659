// Known answers, refused inputs and repeatability of the elementwise, reduction, product, norm, loss and
// shape ops. Their gradients: gradcheck_test.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>

#include "ops/all.h"
#include "ops/gemm.h"
#include "tensor/autograd.h"
#include "tensor/parallel.h"
#include "tests/op_fixtures.h"

using namespace rivulet;
using Values = std::vector<double>;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void check_values(const Tensor& x, const Shape& shape, const Values& want, double tolerance = 1e-6) {
  REQUIRE(x.shape() == shape);
  const Values got = x.to_vector();
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK((got[i] == want[i] || got[i] == doctest::Approx(want[i]).epsilon(tolerance)));
  }
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Largest error of op on f32 values from `low` to `high`, in units of the last place of the exact result.
double worst_ulp(Tensor (*op)(const Tensor&), double (*exact)(double), double low, double high) {
  constexpr int64_t n = 200001;
  Tensor x({n});
  for (int64_t i = 0; i < n; ++i) x.data<float>()[i] = float(low + (high - low) * double(i) / double(n - 1));
  const Tensor y = op(x);
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double want = exact(double(x.data<float>()[i]));
    const float nearest = std::fabs(float(want));
    const double ulp = double(std::nextafter(nearest, INFINITY)) - double(nearest);
    worst = std::max(worst, std::abs(double(y.data<float>()[i]) - want) / ulp);
  }
  return worst;
}

Tensor at(double x) { return Tensor::of({x}, {1}); }

}  // namespace

TEST_CASE("arithmetic broadcasts like NumPy") {
  const Tensor a = Tensor::of({1, 2, 3, 4, 5, 6}, {2, 3}), row = Tensor::of({10, 20, 30}, {3});
  const Tensor column = Tensor::of({100, 200}, {2, 1});
  check_values(a + row, {2, 3}, {11, 22, 33, 14, 25, 36});
  check_values(a - column, {2, 3}, {-99, -98, -97, -196, -195, -194});
  check_values(column * row, {2, 3}, {1000, 2000, 3000, 2000, 4000, 6000});
  check_values(row / a, {2, 3}, {10, 10, 10, 2.5, 4, 5});
  check_values(2.0 - a * 3.0 + 1.0, {2, 3}, {0, -3, -6, -9, -12, -15});
  check_values(6.0 / (-a), {2, 3}, {-6, -3, -2, -1.5, -1.2, -1});
  check_values(a.transpose(0, 1) + column.squeeze(1), {3, 2}, {101, 204, 102, 205, 103, 206});
  check_values(maximum(a, Tensor::of({3.5}, {})), {2, 3}, {3.5, 3.5, 3.5, 4, 5, 6});
  check_values(minimum(a, at(3.5)), {2, 3}, {1, 2, 3, 3.5, 3.5, 3.5});
  check_values(where(Tensor::of({1, 0, 1}, {3}, DType::u8), a, at(-1)), {2, 3}, {1, -1, 3, 4, -1, 6});
}

TEST_CASE("functions of one variable") {
  const Tensor x = Tensor::of({-2, -0.5, 0, 1, 3}, {5});
  const auto each = [&](double (*f)(double)) {
    Values v = x.to_vector();
    for (double& e : v) e = f(e);
    return v;
  };
  check_values(exp(x), {5}, each([](double v) { return std::exp(v); }));
  check_values(square(x), {5}, {4, 0.25, 0, 1, 9});
  check_values(abs(x), {5}, {2, 0.5, 0, 1, 3});
  check_values(relu(x), {5}, {0, 0, 0, 1, 3});
  check_values(clamp(x, -1, 2), {5}, {-1, -0.5, 0, 1, 2});
  check_values(sigmoid(x), {5}, each([](double v) { return 1 / (1 + std::exp(-v)); }));
  check_values(silu(x), {5}, each([](double v) { return v / (1 + std::exp(-v)); }));
  check_values(softplus(x), {5}, each([](double v) { return std::log1p(std::exp(v)); }));
  // PyTorch: torch.nn.functional.gelu(x, approximate="tanh")
  check_values(gelu_tanh(x), {5}, {-0.04540229, -0.15428599, 0, 0.84119201, 2.99636269}, 1e-5);
  check_values(pow_scalar(abs(x), 1.5), {5}, each([](double v) { return std::pow(std::abs(v), 1.5); }));
  check_values(rsqrt(at(4)), {1}, {0.5});
}

TEST_CASE("f32 exp, log and tanh are within 2 ulp of the exact value, what is made of them within 3") {
  CHECK(worst_ulp(exp, std::exp, -103, 88.7) < 1.5);
  CHECK(worst_ulp(exp, std::exp, -1, 1) < 1.5);
  CHECK(worst_ulp(log, std::log, 1e-38, 3) < 1.5);
  CHECK(worst_ulp(log, std::log, 0.9, 1.1) < 1.5);
  CHECK(worst_ulp(tanh, std::tanh, -10, 10) < 2);
  CHECK(worst_ulp(tanh, std::tanh, -0.7, 0.7) < 2);
  CHECK(worst_ulp(
            sigmoid, [](double v) { return 1 / (1 + std::exp(-v)); }, -80, 80) < 3);
  CHECK(worst_ulp(
            softplus, [](double v) { return v > 30 ? v + std::exp(-v) : std::log1p(std::exp(v)); }, -80, 80) <
        3);
  CHECK(worst_ulp(
            silu, [](double v) { return v / (1 + std::exp(-v)); }, -80, 80) < 3);
}

TEST_CASE("edges of the float range") {
  CHECK(exp(at(1000)).item() == kInf);
  CHECK(exp(at(-1000)).item() == 0);
  CHECK(exp(at(-kInf)).item() == 0);
  CHECK(std::isnan(exp(at(kNan)).item()));
  CHECK(log(at(0)).item() == -kInf);
  CHECK(log(at(kInf)).item() == kInf);
  CHECK(std::isnan(log(at(-1)).item()));
  CHECK(log(at(1e-41)).item() == doctest::Approx(std::log(double(float(1e-41)))));
  CHECK(tanh(at(100)).item() == 1);
  CHECK(tanh(at(-100)).item() == -1);
  CHECK(softplus(at(500)).item() == 500);
  CHECK(sigmoid(at(-500)).item() == 0);
  CHECK(gelu_tanh(at(-500)).item() == 0);
  for (const Tensor& pair : {Tensor::of({kNan, 1}, {2}), Tensor::of({1, kNan}, {2})}) {
    CHECK(std::isnan(maximum(pair.slice(0, 0, 1), pair.slice(0, 1, 2)).item()));
    CHECK(std::isnan(minimum(pair.slice(0, 0, 1), pair.slice(0, 1, 2)).item()));
    CHECK(std::isnan(max(pair).item()));
  }
}

TEST_CASE("reductions") {
  const Tensor x = Tensor::of({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {2, 3, 2});
  CHECK(sum(x).item() == 78);
  CHECK(sum(x).shape() == Shape{});
  check_values(sum(x, {1}), {2, 2}, {9, 12, 27, 30});
  check_values(sum(x, {0, -1}, true), {1, 3, 1}, {18, 26, 34});
  check_values(mean(x, {2}), {2, 3}, {1.5, 3.5, 5.5, 7.5, 9.5, 11.5});
  check_values(max(x.transpose(0, 1), {0, 2}), {2}, {6, 12});
  check_values(softmax(Tensor::of({0, std::log(3.0), -kInf}, {3})), {3}, {0.25, 0.75, 0});
  check_values(logsumexp(Tensor::of({1000, 1000, -kInf, -kInf}, {2, 2})), {2}, {1000 + std::log(2.0), -kInf});
  check_values(sum(x.slice(2, 0, 1), {0}), {3, 1}, {8, 12, 16});
}

TEST_CASE("long f32 sums keep their digits") {
  // Ten million times 0.1f: a running f32 sum would be off by several percent.
  const Tensor x = full({10'000'000}, 0.1);
  const double exact = 10'000'000 * double(0.1f);
  CHECK(std::abs(sum(x).item() - exact) < 1e-6 * exact);
  const Tensor columns = sum(x.reshape({5'000'000, 2}), {0});
  for (double s : columns.to_vector()) CHECK(std::abs(s - exact / 2) < 1e-6 * exact);
}

TEST_CASE("matmul and linear: known answers, views, batches") {
  const Tensor a = Tensor::of({1, 2, 3, 4, 5, 6}, {2, 3}), b = Tensor::of({1, 0, 2, 1, 0, 3}, {3, 2});
  check_values(matmul(a, b), {2, 2}, {5, 11, 14, 23});
  check_values(matmul(a.transpose(0, 1), b.transpose(0, 1).slice(1, 0, 2).contiguous().slice(0, 0, 2)),
               {3, 2}, {1, 6, 2, 9, 3, 12});
  check_values(matmul(b.transpose(0, 1), a.transpose(0, 1)), {2, 2}, {5, 14, 11, 23});
  const Tensor two = stack({a, a * 10.0}, 0);
  check_values(matmul(two, b), {2, 2, 2}, {5, 11, 14, 23, 50, 110, 140, 230});
  check_values(matmul(two.unsqueeze(1), stack({b, -b}, 0)), {2, 2, 2, 2},
               {5, 11, 14, 23, -5, -11, -14, -23, 50, 110, 140, 230, -50, -110, -140, -230});
  check_values(linear(two, b.transpose(0, 1), Tensor::of({1, -1}, {2})), {2, 2, 2},
               {6, 10, 15, 22, 51, 109, 141, 229});
  check_values(linear(a.slice(1, 0, 3, 2), Tensor::of({1, 1}, {1, 2})), {2, 1}, {4, 10});
}

TEST_CASE("gemm agrees with its definition in every layout, with edges, alpha and beta") {
  Rng rng{3};
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 70, 20}, {15, 33, 300}, {29, 17, 5}, {130, 90, 257}})
    for (int layout = 0; layout < 4; ++layout) {
      const bool ta = layout & 1, tb = layout & 2;
      const Tensor a = randn({ta ? k : m, ta ? m : k}, rng, DType::f64),
                   b = randn({tb ? n : k, tb ? k : n}, rng, DType::f64);
      const Tensor start = randn({m, n + 2}, rng, DType::f64);
      const Tensor c = start.clone(), f = start.to(DType::f32), fa = a.to(DType::f32), fb = b.to(DType::f32);
      cpu::gemm<double>(ta, tb, m, n, k, 0.5, a.data<double>(), a.dim(1), b.data<double>(), b.dim(1), -2.0,
                        c.data<double>(), n + 2);
      cpu::gemm<float>(ta, tb, m, n, k, 0.5f, fa.data<float>(), a.dim(1), fb.data<float>(), b.dim(1), -2.f,
                       f.data<float>(), n + 2);
      double worst = 0, worst_f32 = 0;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n + 2; ++j) {
          double s = start.data<double>()[i * (n + 2) + j];
          if (j < n) {
            s *= -2;
            for (int64_t p = 0; p < k; ++p)
              s += 0.5 * a.data<double>()[ta ? p * m + i : i * k + p] *
                   b.data<double>()[tb ? j * k + p : p * n + j];
          }
          worst = std::max(worst, std::abs(s - c.data<double>()[i * (n + 2) + j]));
          worst_f32 = std::max(worst_f32, std::abs(s - double(f.data<float>()[i * (n + 2) + j])));
        }
      CAPTURE(m);
      CAPTURE(layout);
      CHECK(worst < 1e-12);
      CHECK(worst_f32 < 1e-4);
    }
}

TEST_CASE("norms, modulation and gates") {
  const Tensor x = Tensor::of({3, 4, 6, 8}, {2, 2});
  const double r = std::sqrt(12.5);
  check_values(rms_norm(x, Tensor::of({1, 2}, {2}), 0), {2, 2}, {3 / r, 8 / r, 3 / r, 8 / r});
  check_values(layer_norm(x, {}, {}, 0), {2, 2}, {-1, 1, -1, 1});
  check_values(layer_norm(x, Tensor::of({2, 3}, {2}), Tensor::of({10, 20}, {2}), 0), {2, 2}, {8, 23, 8, 23});
  const Tensor tokens = Tensor::of({1, 2, 3, 4, 5, 6, 7, 8}, {2, 2, 2});
  const Tensor shift = Tensor::of({10, 20, 30, 40}, {2, 1, 2}), scale = Tensor::of({0, 1, 2, 3}, {2, 1, 2});
  check_values(modulate(tokens, shift, scale), {2, 2, 2}, {11, 24, 13, 28, 45, 64, 51, 72});
  check_values(gate_residual(tokens, scale, tokens), {2, 2, 2}, {1, 4, 3, 8, 15, 24, 21, 32});
  check_values(layer_norm_modulate(tokens, shift, scale), {2, 2, 2},
               modulate(layer_norm(tokens), shift, scale).to_vector(), 1e-5);
  // Per frame: [B, T, S, C] with [B, T, 1, C].
  const Tensor frames = tokens.reshape({1, 2, 2, 2});
  check_values(modulate(frames, shift.unsqueeze(0), scale.unsqueeze(0)), {1, 2, 2, 2},
               {11, 24, 13, 28, 45, 64, 51, 72});
}

TEST_CASE("embedding, losses, joining and cutting") {
  const Tensor table = Tensor::of({0, 1, 10, 11, 20, 21}, {3, 2});
  check_values(embedding(Tensor::of({2, 0}, {1, 2}, DType::i64), table), {1, 2, 2}, {20, 21, 0, 1});
  const Tensor a = Tensor::of({1, 2, 3, 4}, {2, 2}), b = Tensor::of({1, 4, 0, 0}, {2, 2});
  CHECK(mse_loss(a, b).item() == doctest::Approx((4 + 9 + 16) / 4.0));
  CHECK(l1_loss(a, b).item() == doctest::Approx(9 / 4.0));
  CHECK(charbonnier(a, b, 0).item() == doctest::Approx(9 / 4.0));
  CHECK(masked_mse(a, b, Tensor::of({1, 0}, {2, 1}, DType::u8)).item() == doctest::Approx(2));
  CHECK(masked_mse(a, b, zeros({2, 2})).item() == 0);
  check_values(cat({a, b.slice(1, 0, 1)}, 1), {2, 3}, {1, 2, 1, 3, 4, 0});
  check_values(stack({a, b}, -1), {2, 2, 2}, {1, 1, 2, 4, 3, 0, 4, 0});
  check_values(pad(a, 0, 1, 0), {3, 2}, {0, 0, 1, 2, 3, 4});
  check_values(chunk(a, 2, 1)[1], {2, 1}, {2, 4});
  check_values(cat({Tensor::of({1, 2}, {2}, DType::i64), Tensor::of({3}, {1}, DType::i64)}, 0), {3},
               {1, 2, 3});
}

TEST_CASE("errors name the op and the shapes") {
  const Tensor x = zeros({2, 3}), y = zeros({4});
  const auto both = [](const std::string& e, const char* op, const char* a, const char* b) {
    CAPTURE(e);
    CHECK((has(e, op) && has(e, a) && has(e, b)));
  };
  both(error_of([&] { add(x, y); }), "add", "[2, 3]", "[4]");
  both(error_of([&] { mul(x, zeros({2, 3}, DType::f64)); }), "mul", "f32", "f64");
  both(error_of([&] { where(zeros({2, 3}), x, x); }), "where", "f32", "u8");
  both(error_of([&] { sum(x, {2}); }), "sum", "2", "2");
  both(error_of([&] { sum(x, {0, -2}); }), "sum", "-2", "[2, 3]");
  both(error_of([&] { matmul(x, y.reshape({2, 2})); }), "matmul", "[2, 3]", "[2, 2]");
  both(error_of([&] { matmul(zeros({2, 1, 3}), zeros({3, 3, 1})); }), "matmul", "[2]", "[3]");
  both(error_of([&] { linear(x, zeros({5, 4})); }), "linear", "[2, 3]", "[5, 4]");
  both(error_of([&] { linear(x, zeros({5, 3}), y); }), "linear", "[4]", "[5, 3]");
  both(error_of([&] { rms_norm(x, y); }), "rms_norm", "[4]", "[2, 3]");
  both(error_of([&] { layer_norm(x, {}, y); }), "layer_norm", "[4]", "[2, 3]");
  both(error_of([&] { modulate(x, y, y); }), "modulate", "[4]", "[2, 3]");
  both(error_of([&] { gate_residual(x, zeros({3}), y); }), "gate_residual", "[2, 3]", "[4]");
  both(error_of([&] { embedding(Tensor::of({7}, {1}, DType::i64), x); }), "embedding", "7", "2 rows");
  both(error_of([&] { mse_loss(x, y); }), "mse_loss", "[2, 3]", "[4]");
  both(error_of([&] { masked_mse(x, x, y); }), "masked_mse", "[4]", "[2, 3]");
  both(error_of([&] { cat({x, y}, 0); }), "cat", "[2, 3]", "[4]");
  both(error_of([&] { split(x, {1, 1}, 1); }), "split", "2", "[2, 3]");
  both(error_of([&] { chunk(x, 2, 1); }), "chunk", "2", "[2, 3]");
  both(error_of([&] { exp(zeros({2}, DType::i64)); }), "exp", "i64", "[2]");
}

TEST_CASE("results and gradients have the same bits for any number of threads") {
  check_same_for_any_threads([] {
    Rng rng{5};
    const auto leaf = [&](const Shape& shape) { return randn(shape, rng).set_requires_grad(); };
    const Tensor x = leaf({2, 700, 96}), w = leaf({200, 96}), bias = leaf({200}), g = leaf({96});
    const Tensor shift = leaf({2, 1, 96}), scale = leaf({2, 1, 96});
    const Tensor h = modulate(rms_norm(x, g), shift, scale);
    const Tensor y = softmax(silu(linear(layer_norm_modulate(h, shift, scale), w, bias)));
    const Tensor z = matmul(y.transpose(1, 2), h);
    const Tensor loss = mse_loss(z, zeros_like(z)) + sum(y * y);
    backward(loss);
    return Tensors{y.detach(),  z.detach(), loss.detach(), x.grad(),    w.grad(),
                   bias.grad(), g.grad(),   shift.grad(),  scale.grad()};
  });
}
