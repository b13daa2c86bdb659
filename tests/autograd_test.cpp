#include "tensor/autograd.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "tensor/random.h"
#include "tests/op_fixtures.h"

using namespace rivulet;
using Values = std::vector<double>;

namespace {

// Three small ops of the test's own, so that the tape is tested apart from the real ops.
template <class F>
Tensor map2(const Tensor& a, const Tensor& b, F&& f) {
  const Values x = a.to_vector(), y = b.to_vector();
  Values z(x.size());
  for (size_t i = 0; i < x.size(); ++i) z[i] = f(x[i], y[i]);
  return Tensor::of(z, a.shape(), a.dtype());
}
Tensor mul(const Tensor& a, const Tensor& b) {
  return record("mul", map2(a, b, [](double x, double y) { return x * y; }), {a, b},
                [a, b](const Tensor& dy) -> Tensors {
                  return {mul(dy, b), mul(dy, a)};
                });
}
Tensor add(const Tensor& a, const Tensor& b) {
  return record("add", map2(a, b, [](double x, double y) { return x + y; }), {a, b},
                [](const Tensor& dy) -> Tensors {
                  return {dy, dy};
                });
}
Tensor log_of(const Tensor& a) {
  return record(
      "log", map2(a, a, [](double x, double) { return std::log(x); }), {a},
      [a](const Tensor& dy) -> Tensors { return {map2(dy, a, [](double g, double x) { return g / x; })}; });
}
Tensor sum(const Tensor& a) {
  const Shape shape = a.shape();
  return record("sum", sum_to(a, Shape{}), {a},
                [shape](const Tensor& dy) -> Tensors { return {dy.expand(shape)}; });
}
// Both halves of a vector: an op with two outputs.
Tensors split(const Tensor& a) {
  const int64_t n = a.numel() / 2;
  const Tensor flat = a.detach();
  return record("split", {flat.slice(0, 0, n), flat.slice(0, n, 2 * n)}, {a},
                [n](const Tensors& dy) -> Tensors {
                  const Tensor dx = zeros({2 * n}, DType::f64);
                  for (int64_t i = 0; i < 2; ++i)
                    if (dy[size_t(i)].defined()) dx.slice(0, i * n, (i + 1) * n).copy_from(dy[size_t(i)]);
                  return {dx};
                });
}

Tensor leaf(const Values& v, DType dtype = DType::f64) {
  return Tensor::of(v, {int64_t(v.size())}, dtype).set_requires_grad();
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("gradients of a small expression") {
  const Tensor x = leaf({1, 2, 3}), y = leaf({4, 5, 6});
  const Tensor loss = sum(add(mul(x, y), log_of(x)));
  CHECK(loss.requires_grad());
  backward(loss);
  CHECK(x.grad().to_vector() == Values{4 + 1, 5 + 1.0 / 2, 6 + 1.0 / 3});
  CHECK(y.grad().to_vector() == Values{1, 2, 3});
}

TEST_CASE("a shared subexpression gets the sum of its uses, once") {
  const Tensor x = leaf({3});
  int runs = 0;
  const Tensor square =
      record("square", mul(x.detach(), x.detach()), {x}, [&, x](const Tensor& dy) -> Tensors {
        ++runs;
        return {mul(mul(dy, x.detach()), Tensor::of({2}, {1}, DType::f64))};
      });
  const Tensor a = mul(square, square);     // x^4
  const Tensor b = add(a, add(square, x));  // x^4 + x^2 + x
  backward(b);
  CHECK(runs == 1);
  CHECK(x.grad().to_vector() == Values{4 * 27 + 2 * 3 + 1});
}

TEST_CASE("a gradient that two inputs share is not changed through one of them") {
  const Tensor x = leaf({1, 1}), y = leaf({1, 1});
  const Tensor seed = Tensor::of({1, 2}, {2}, DType::f64);
  const Tensor s = add(x, y);         // hands the same dy to x and y
  backward(add(s, mul(x, x)), seed);  // and x gets more
  CHECK(x.grad().to_vector() == Values{3, 6});
  CHECK(y.grad().to_vector() == Values{1, 2});
  CHECK(seed.to_vector() == Values{1, 2});
}

TEST_CASE("leaves gather over backward calls until the gradient is cleared") {
  const Tensor x = leaf({2});
  backward(mul(x, x));
  const Tensor held = x.grad();
  backward(mul(x, x));
  CHECK(x.grad().item() == 8);
  x.set_grad({});
  CHECK_FALSE(x.grad().defined());
  backward(x);  // a leaf is its own root
  CHECK(x.grad().item() == 1);
}

TEST_CASE("half-precision leaves gather too") {
  for (DType d : {DType::bf16, DType::f16}) {
    const Tensor x = leaf({2, 4}, d);
    backward(sum(add(mul(x, x), x)));
    CHECK(x.grad().dtype() == d);
    CHECK(x.grad().to_vector() == Values{5, 9});
    backward(sum(x));
    CHECK(x.grad().to_vector() == Values{6, 10});
  }
}

TEST_CASE("NoGrad and detach leave the tape") {
  const Tensor x = leaf({2});
  {
    const NoGrad off;
    CHECK_FALSE(grad_enabled());
    CHECK_FALSE(mul(x, x).requires_grad());
    CHECK_FALSE(will_record({x}));
    {
      const NoGrad still_off(false);
      CHECK_FALSE(grad_enabled());
    }
  }
  CHECK(grad_enabled());
  CHECK(will_record({x}));
  CHECK_FALSE(will_record({Tensor::of({1}, {1})}));
  const Tensor d = x.detach();
  CHECK_FALSE(d.requires_grad());
  CHECK(d.storage() == x.storage());
  backward(mul(x, mul(x, x).detach()));
  CHECK(x.grad().item() == 4);
  CHECK_FALSE(mul(d, d).requires_grad());
}

TEST_CASE("NoGrad ends when an exception passes") {
  try {
    const NoGrad off;
    fail("out");
  } catch (const Error&) {
  }
  CHECK(grad_enabled());
}

TEST_CASE("an op with several outputs sees which ones got a gradient") {
  const Tensor x = leaf({1, 2, 3, 4});
  Tensors ys = split(x);
  backward(sum(ys[1]));
  CHECK(x.grad().to_vector() == Values{0, 0, 1, 1});
  x.set_grad({});
  ys = split(x);
  backward(sum(mul(ys[0], ys[1])));
  CHECK(x.grad().to_vector() == Values{3, 4, 1, 2});
  x.set_grad({});
  ys = split(x);
  backward(Tensors{sum(ys[0]), ys[1]}, {{}, Tensor::of({5, 6}, {2}, DType::f64)});
  CHECK(x.grad().to_vector() == Values{1, 1, 5, 6});
}

TEST_CASE("views and converting copies carry gradients") {
  Rng rng{1, 0};
  const Tensor x = randn({2, 3, 4}, rng, DType::f64).set_requires_grad();
  const auto gradient = [&](const Tensor& y, const Tensor& w) {
    x.set_grad({});
    backward(sum(mul(y, w)));
    return x.grad();
  };
  // d(sum(view(x) * w))/dx puts every w back where the view took its element from.
  const auto expect = [&](auto&& view) {
    Tensor w;
    Values expected(24, 0.0);
    {
      const NoGrad none;
      const Tensor where = view(arange(24, DType::f64).reshape({2, 3, 4}));
      w = randn(where.shape(), rng, DType::f64);
      const Values index = where.to_vector(), weight = w.to_vector();
      for (size_t i = 0; i < index.size(); ++i) expected[size_t(index[i])] += weight[i];
    }
    const Values got = gradient(view(x), w).to_vector();
    for (size_t i = 0; i < 24; ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-12));
  };
  expect([](const Tensor& t) { return t.permute({2, 0, 1}); });
  expect([](const Tensor& t) { return t.transpose(0, -1); });
  expect([](const Tensor& t) { return t.slice(2, 1, 4, 2); });
  expect([](const Tensor& t) { return t.slice(0, 1, 1); });
  expect([](const Tensor& t) { return t.select(1, -1); });
  expect([](const Tensor& t) { return t.unsqueeze(1).expand({2, 5, 3, 4}); });
  expect([](const Tensor& t) { return t.select(0, 1).unsqueeze(-1).squeeze(2); });
  expect([](const Tensor& t) { return t.transpose(0, 1).reshape({-1, 2}); });
  expect([](const Tensor& t) { return t.flatten(0, 1).slice(0, 0, 6, 4); });
  expect([](const Tensor& t) { return t.transpose(1, 2).contiguous(); });
  expect([](const Tensor& t) { return t.clone(); });
}

TEST_CASE("a conversion hands back a gradient of the source's dtype") {
  const Tensor x = leaf({1, 2}, DType::f32);
  const Tensor y = x.to(DType::bf16).to(DType::f64);
  backward(sum(y));
  CHECK(x.grad().dtype() == DType::f32);
  CHECK(x.grad().to_vector() == Values{1, 1});
  CHECK_FALSE(x.to(DType::i32).requires_grad());
}

TEST_CASE("a checkpoint gives the same results and gradients as the plain run") {
  const auto run = [](bool checkpointed) {
    const Tensor x = leaf({1, 2, 3, 4}), unused = Tensor::of({7, 7, 7, 7}, {4}, DType::f64);
    const Tensor w = leaf({0.5, -1, 2, 3});  // captured, not an input
    int calls = 0;
    const auto block = [&](const Tensors& in) -> Tensors {
      ++calls;
      const Tensor h = add(mul(in[0], w), in[1]);
      return {mul(h, in[0]), log_of(mul(h, h))};
    };
    const Tensors in = {mul(x, x), unused};
    const Tensors ys = checkpointed ? checkpoint(block, in) : block(in);
    backward(sum(add(ys[0], ys[1])));
    CHECK(calls == (checkpointed ? 2 : 1));
    return Tensors{ys[0].detach(), ys[1].detach(), x.grad(), w.grad()};
  };
  const Tensors plain = run(false), saved = run(true);
  for (size_t i = 0; i < plain.size(); ++i) CHECK(saved[i].to_vector() == plain[i].to_vector());
}

TEST_CASE("a checkpoint over captured leaves alone, with one output used, nested, and without a tape") {
  const Tensor w = leaf({2, 3});
  const Tensor x = Tensor::of({5, 7}, {2}, DType::f64);
  const auto inner = [&](const Tensors& in) -> Tensors { return {mul(in[0], w), in[0]}; };
  const auto outer = [&](const Tensors& in) -> Tensors { return {mul(checkpoint(inner, in)[0], w)}; };
  backward(sum(checkpoint(outer, {x})[0]));  // sum(x w^2)
  CHECK(w.grad().to_vector() == Values{20, 42});
  const NoGrad off;
  int calls = 0;
  const Tensors ys = checkpoint(
      [&](const Tensors& in) -> Tensors {
        ++calls;
        return {mul(in[0], w)};
      },
      {x});
  CHECK(calls == 1);
  CHECK_FALSE(ys[0].requires_grad());
}

TEST_CASE("a checkpoint keeps less alive until backward") {
  const auto held = [](bool checkpointed) {
    const Tensor x = zeros({1000}, DType::f64).set_requires_grad();
    const int64_t before = cpu_memory().now;
    const auto block = [](const Tensors& in) -> Tensors {
      Tensor h = in[0];
      for (int i = 0; i < 10; ++i) h = mul(h, h);
      return {h};
    };
    const Tensors ys = checkpointed ? checkpoint(block, {x}) : block({x});
    return cpu_memory().now - before;
  };
  CHECK(held(false) >= 10 * 8000);
  CHECK(held(true) < 2 * 8000);
}

TEST_CASE("anomaly mode names the first op that made a NaN, forward and backward") {
  const Tensor x = leaf({1, -1});
  CHECK_NOTHROW(mul(log_of(x), x));
  {
    const AnomalyMode watch;
    const std::string text = error_of([&] { mul(log_of(add(x, x)), x); });
    CHECK(has(text, "log"));
    CHECK_FALSE(has(text, "mul"));
    CHECK(has(text, "[2]"));
    // The forward is finite, the gradient is not: 0 * infinity.
    const Tensor y = record("spike", x.detach(), {x}, [](const Tensor& dy) -> Tensors {
      return {mul(dy, Tensor::of({INFINITY, 1}, {2}, DType::f64))};
    });
    const std::string back = error_of([&] { backward(sum(mul(y, Tensor::of({0, 1}, {2}, DType::f64)))); });
    CHECK(has(back, "backward"));
    CHECK(has(back, "spike"));
    const NoGrad off;  // watched without a tape as well
    CHECK(has(error_of([&] { log_of(x); }), "log"));
  }
  CHECK_NOTHROW(log_of(x));
}

TEST_CASE("chains of 100,000 nodes run and are freed without deep recursion") {
  const int n = 100000;
  const Tensor x = leaf({1}), one = Tensor::of({1}, {1}, DType::f64);
  const auto chain = [&] {
    Tensor y = x;
    for (int i = 0; i < n; ++i) y = mul(y, one);  // the rule of mul holds its input
    return y;
  };
  SUBCASE("freed without backward") { CHECK(chain().item() == 1); }
  SUBCASE("freed by backward") {
    backward(chain());
    CHECK(x.grad().item() == 1);
  }
  SUBCASE("through views") {
    Tensor y = x;
    for (int i = 0; i < n; ++i) y = y.unsqueeze(0).squeeze(0);
    backward(y);
    CHECK(x.grad().item() == 1);
  }
  SUBCASE("held by rules alone") {
    Tensor y = x;
    for (int i = 0; i < n; ++i)
      y = record("hold", y.detach(), {x}, [y](const Tensor& dy) -> Tensors { return {dy}; });
    backward(y);
    CHECK(x.grad().item() == 1);
  }
}

TEST_CASE("the tape gives its memory back") {
  const int64_t before = cpu_memory().now;
  {
    const Tensor x = zeros({1000}, DType::f64).set_requires_grad();
    const Tensor y = sum(mul(mul(x, x), x));
    CHECK(cpu_memory().now >= before + 3 * 8000);
    backward(y);
    CHECK(cpu_memory().now <= before + 2 * 8000 + 64);  // x and its gradient
  }
  CHECK(cpu_memory().now == before);
}

TEST_CASE("wrong uses are refused") {
  const Tensor x = leaf({1, 2});
  CHECK(has(error_of([&] { backward(mul(x, x)); }), "[2]"));
  CHECK(has(error_of([&] { backward(mul(x, x), zeros({3}, DType::f64)); }), "[3]"));
  CHECK(has(error_of([&] { backward(Tensor::of({1}, {1})); }), "gradient"));
  const Tensor y = sum(mul(x, x));
  backward(y);
  CHECK(has(error_of([&] { backward(y); }), "sum"));
  CHECK(has(error_of([&] { x.fill(0); }), "NoGrad"));
  CHECK(has(error_of([&] { x.copy_from(zeros({2})); }), "NoGrad"));
  CHECK(has(error_of([&] { mul(x, x).add_in_place(x); }), "NoGrad"));
  {
    const NoGrad off;
    CHECK_NOTHROW(x.fill(3));
  }
  CHECK(has(error_of([&] { mul(x, x).set_requires_grad(); }), "mul"));
  CHECK(has(error_of([] { zeros({2}, DType::i32).set_requires_grad(); }), "i32"));
  const Tensor wrong = record("wrong", x.detach(), {x}, [](const Tensor&) -> Tensors { return {}; });
  CHECK(has(error_of([&] { backward(sum(wrong)); }), "wrong"));
  const Tensor shape =
      record("misshaped", x.detach(), {x}, [](const Tensor&) -> Tensors { return {zeros({3})}; });
  CHECK(has(error_of([&] { backward(sum(shape)); }), "[3]"));
}

TEST_CASE("gathering a gradient writes to no memory that another holds") {
  const auto vector = [](double x, double y) { return Tensor::of({x, y}, {2}, DType::f64); };
  const Tensor seed = vector(1, 2);
  Tensor a = vector(3, 4), b = vector(5, 6);
  a.set_requires_grad();
  b.set_requires_grad();
  const Tensor total = add(a, b);  // one gradient for both operands
  backward(add(add(total, mul(total, vector(2, 2))), total), seed);
  CHECK(seed.to_vector() == std::vector<double>{1, 2});
  CHECK(a.grad().to_vector() == std::vector<double>{4, 8});
  a.grad().add_in_place(vector(1, 1));
  CHECK(b.grad().to_vector() == std::vector<double>{4, 8});
  backward(mul(a, vector(1, 1)), seed);  // gathered on top
  CHECK(a.grad().to_vector() == std::vector<double>{6, 11});
  CHECK(seed.to_vector() == std::vector<double>{1, 2});
}
