// Every op in ops/all.h: backward() against central differences in f64, with a random cotangent, on dense
// inputs and on strided views; and the results and gradients of each precision against a wider one. One op:
// gradcheck_test -sc=rms_norm
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <iomanip>
#include <numeric>

#include "ops/all.h"
#include "tensor/autograd.h"

using namespace rivulet;

namespace {

Tensor make_input(const OpCase& op, const Shape& shape, int i, Rng& rng, DType dtype) {
  return op.fill ? op.fill(shape, i, rng, dtype) : randn(shape, rng, dtype);
}

bool differentiated(const OpCase& op, const Tensors& inputs, size_t i) {
  return is_floating(inputs[i].dtype()) && (op.differentiable.empty() || op.differentiable[i]);
}

// The same values behind strides: every second element of a larger tensor, or a transposed copy.
Tensor as_view(const Tensor& x, size_t i) {
  if (x.dims() == 0) return x;
  if (i % 2 == 1 && x.dims() >= 2) return x.transpose(0, -1).clone().transpose(0, -1);
  Shape larger = x.shape();
  larger[x.dims() - 1] *= 2;
  const Tensor view = zeros(larger, x.dtype()).slice(-1, 0, larger[x.dims() - 1], 2);
  view.copy_from(x);
  return view;
}

// Addresses of all elements of an f64 tensor, in row-major order.
std::vector<double*> elements(const Tensor& x) {
  std::vector<double*> at(size_t(x.numel()));
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t rest = i, offset = 0;
    for (int d = x.dims() - 1; d >= 0; --d) {
      offset += rest % x.shape()[d] * x.strides()[d];
      rest /= x.shape()[d];
    }
    at[size_t(i)] = x.data<double>() + offset;
  }
  return at;
}

double inner_product(const Tensors& ys, const Tensors& cotangents) {
  double total = 0;
  for (size_t i = 0; i < ys.size(); ++i) {
    if (!cotangents[i]) continue;
    const auto y = ys[i].to_vector(), c = cotangents[i].to_vector();
    total = std::inner_product(y.begin(), y.end(), c.begin(), total);
  }
  return total;
}

struct Outcome {
  double worst = 0;    // largest difference over the largest slope of that input
  double largest = 0;  // largest gradient seen
  bool any = false;    // something was differentiated
};

// One op on one list of shapes.
void check_gradients(const OpCase& op, const Shapes& shapes, bool strided, Outcome& outcome) {
  Rng rng{17};
  Tensors inputs;
  for (size_t i = 0; i < shapes.size(); ++i) {
    Tensor x = make_input(op, shapes[i], int(i), rng, DType::f64);
    if (strided) x = as_view(x, i);
    if (strided && x.dims() > 0 && x.dim(0) > 1 && x.dim(-1) > 1)
      REQUIRE(!(x.dims() > 1 && x.is_contiguous()));
    inputs.push_back(x);
  }
  for (size_t i = 0; i < inputs.size(); ++i)
    if (differentiated(op, inputs, i)) inputs[i].set_requires_grad();
  const Tensors ys = op.run(inputs);
  Tensors roots, cotangents, seeds;
  for (const Tensor& y : ys) {
    cotangents.push_back(is_floating(y.dtype()) ? randn(y.shape(), rng, DType::f64) : Tensor());
    if (!y.requires_grad()) continue;
    roots.push_back(y);
    seeds.push_back(cotangents.back());
  }
  if (roots.empty()) return;
  backward(roots, seeds);

  NoGrad off;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!differentiated(op, inputs, i)) continue;
    outcome.any = true;
    const Tensor grad = inputs[i].grad();
    const std::vector<double> slopes =
        grad ? grad.to_vector() : std::vector<double>(size_t(inputs[i].numel()));
    const std::vector<double*> at = elements(inputs[i]);
    double difference = 0, scale = 1e-3;
    for (size_t k = 0; k < at.size(); ++k) {
      const double x = *at[k], h = 1e-5 * std::max(1.0, std::abs(x));
      *at[k] = x + h;
      const double up = inner_product(op.run(inputs), cotangents);
      *at[k] = x - h;
      const double down = inner_product(op.run(inputs), cotangents);
      *at[k] = x;
      const double slope = (up - down) / (2 * h);
      const double error = std::abs(slope - slopes[k]);
      difference = error <= difference ? difference : error;  // a NaN is kept
      scale = std::max(scale, std::abs(slope));
      outcome.largest = std::max(outcome.largest, std::abs(slopes[k]));
    }
    const double relative = difference / scale;
    CAPTURE(i);
    CAPTURE(shapes[i]);
    CHECK(relative <= op.tolerance);
    outcome.worst = relative <= outcome.worst ? outcome.worst : relative;
  }
}

void check_op(const OpCase& op) {
  Outcome outcome[2];
  for (const bool strided : {false, true}) {
    CAPTURE(strided);
    for (const Shapes& shapes : op.check) check_gradients(op, shapes, strided, outcome[strided]);
    // A case whose gradients are all zero would check nothing.
    if (outcome[strided].any) CHECK(outcome[strided].largest > 0);
  }
  std::printf("%-22s %.1e dense  %.1e strided\n", op.name.c_str(), outcome[0].worst, outcome[1].worst);
}

struct Run {
  Tensors ys, grads;
};

Run run_with_gradients(const OpCase& op, const Tensors& values, const Tensors& cotangents) {
  Tensors inputs, roots, seeds;
  for (const Tensor& v : values) inputs.push_back(v.clone());
  for (size_t i = 0; i < inputs.size(); ++i)
    if (differentiated(op, inputs, i)) inputs[i].set_requires_grad();
  Run run{op.run(inputs), {}};
  for (size_t i = 0; i < run.ys.size(); ++i) {
    if (!run.ys[i].requires_grad()) continue;
    roots.push_back(run.ys[i]);
    seeds.push_back((cotangents.empty() ? run.ys : cotangents)[i].detach().to(run.ys[i].dtype()));
  }
  if (!roots.empty()) backward(roots, seeds);
  for (const Tensor& x : inputs) run.grads.push_back(x.grad());
  return run;
}

// |got - want| <= eps * (|want| + slack)
void check_close(const Tensor& got, const Tensor& want, double eps, double slack) {
  REQUIRE(got.defined() == want.defined());
  if (!got) return;
  REQUIRE(got.shape() == want.shape());
  const auto a = got.to_vector(), b = want.to_vector();
  for (size_t k = 0; k < a.size(); ++k) {
    CAPTURE(k);
    CHECK(std::abs(a[k] - b[k]) <= eps * (std::abs(b[k]) + slack));
  }
}

double largest(const Tensor& t) {
  double size = 0;
  if (t)
    for (double x : t.to_vector()) size = std::max(size, std::abs(x));
  return size;
}

// Results and gradients on `dtype` inputs against those on the same values in `wide`: relative to the value,
// with a share of the largest one as slack, and at least `unit`. The first result is its own cotangent, so
// that both runs have the same.
void check_precision(const OpCase& op, DType dtype, DType wide, double eps, double unit) {
  for (const Shapes& shapes : op.check) {
    CAPTURE(shapes[0]);
    Rng rng{23};
    Tensors low, high;
    for (size_t i = 0; i < shapes.size(); ++i) {
      Tensor x = make_input(op, shapes[i], int(i), rng, DType::f32);
      const bool varies = is_floating(x.dtype());
      if (varies && (op.differentiable.empty() || op.differentiable[i])) x = x.to(dtype);
      low.push_back(x);
      high.push_back(varies ? x.to(wide) : x);
    }
    const Run got = run_with_gradients(op, low, {});
    const Run want = run_with_gradients(op, high, got.ys);
    REQUIRE(got.ys.size() == want.ys.size());
    for (size_t i = 0; i < got.ys.size(); ++i)
      check_close(got.ys[i], want.ys[i], eps, std::max(unit, 0.1 * largest(want.ys[i])));
    // A gradient may be the small difference of large terms: its slack is that of unit inputs.
    for (size_t i = 0; i < got.grads.size(); ++i)
      check_close(got.grads[i], want.grads[i], 2 * eps, std::max(1.0, largest(want.grads[i])));
  }
}

}  // namespace

TEST_CASE("backward agrees with central differences") {
  for (const OpCase* op : all_op_cases()) SUBCASE(op->name.c_str()) {
      check_op(*op);
    }
}

TEST_CASE("bf16 and f16 give the f32 results and gradients, rounded") {
  for (const OpCase* op : all_op_cases()) {
    SUBCASE(op->name.c_str()) {
      check_precision(*op, DType::bf16, DType::f32, 0x1p-8, 0);
      check_precision(*op, DType::f16, DType::f32, 0x1p-11, 0);
    }
  }
}

TEST_CASE("f32 gives the f64 results and gradients") {
  for (const OpCase* op : all_op_cases()) SUBCASE(op->name.c_str()) {
      check_precision(*op, DType::f32, DType::f64, 0x1p-18, 1);
    }
}

TEST_CASE("the list names every op once and gives it what the machinery needs") {
  std::vector<std::string> names;
  for (const OpCase* op : all_op_cases()) {
    CAPTURE(op->name);
    CHECK(std::find(names.begin(), names.end(), op->name) == names.end());
    names.push_back(op->name);
    CHECK(op->run);
    CHECK(!op->check.empty());
    REQUIRE(!op->bench.empty());
    CHECK(op->bytes(op->bench[0]) > 0);
    CHECK(op->flops(op->bench[0]) >= 0);
  }
}
