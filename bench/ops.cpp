// Benchmark rows of the declared ops, each with a check of what is timed.
#include "ops/all.h"

#include <cmath>
#include <sstream>

#include "bench/row.h"
#include "tensor/autograd.h"

namespace rivulet::bench {
namespace {

Tensors make_inputs(const OpCase& op, const Shapes& shapes, DType dtype, uint64_t seed) {
  Rng rng{seed};
  Tensors inputs;
  for (size_t i = 0; i < shapes.size(); ++i)
    inputs.push_back(op.fill ? op.fill(shapes[i], int(i), rng, dtype) : randn(shapes[i], rng, dtype));
  return inputs;
}

bool differentiated(const OpCase& op, const Tensors& inputs, size_t i) {
  return is_floating(inputs[i].dtype()) && (op.differentiable.empty() || op.differentiable[i]);
}

// Handles of their own on the same data, asking for gradients where the op has them.
Tensors as_leaves(const OpCase& op, const Tensors& inputs) {
  Tensors leaves;
  for (size_t i = 0; i < inputs.size(); ++i) {
    leaves.push_back(inputs[i].detach());
    if (differentiated(op, inputs, i)) leaves[i].set_requires_grad();
  }
  return leaves;
}

void run_backward(const Tensors& ys, const Tensors& cotangents) {
  Tensors roots, seeds;
  for (size_t i = 0; i < ys.size(); ++i) {
    if (!ys[i].requires_grad()) continue;
    roots.push_back(ys[i]);
    seeds.push_back(cotangents[i]);
  }
  if (!roots.empty()) backward(roots, seeds);
}

double dot(const Tensors& a, const Tensors& b) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i] || !b[i] || !is_floating(a[i].dtype())) continue;
    const auto x = a[i].to_vector(), y = b[i].to_vector();
    for (size_t k = 0; k < x.size(); ++k) total += x[k] * y[k];
  }
  return total;
}

// The backward against the slope along one random direction through all inputs, in f64.
std::string wrong_gradient(const OpCase& op, const Shapes& shapes) {
  const Tensors inputs = make_inputs(op, shapes, DType::f64, 3);
  const Tensors leaves = as_leaves(op, inputs);
  Rng rng{4};
  const Tensors ys = op.run(leaves);
  Tensors cotangents, direction, gradient;
  for (const Tensor& y : ys) cotangents.push_back(randn(y.shape(), rng, DType::f64));
  run_backward(ys, cotangents);
  double scale = 1e-3;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool moves = differentiated(op, inputs, i);
    direction.push_back(moves ? randn(shapes[i], rng, DType::f64) : Tensor());
    gradient.push_back(moves ? leaves[i].grad() : Tensor());
    if (gradient[i]) scale += std::sqrt(dot({gradient[i]}, {gradient[i]}));
  }
  const NoGrad off;
  const double h = 1e-5;
  const auto at = [&](double t) {
    Tensors moved;
    for (size_t i = 0; i < inputs.size(); ++i) {
      moved.push_back(inputs[i].clone());
      if (direction[i]) moved[i].add_in_place(direction[i], t);
    }
    return dot(op.run(moved), cotangents);
  };
  const double slope = (at(h) - at(-h)) / (2 * h), claimed = dot(gradient, direction);
  if (std::abs(slope - claimed) <= 10 * op.tolerance * scale) return "";
  std::ostringstream text;
  text << "gradient: slope " << slope << ", backward says " << claimed;
  return text.str();
}

// The f32 results of the timed inputs against those of f64, relative to the largest value of each output.
std::string wrong_values(const OpCase& op, const Tensors& inputs) {
  const NoGrad off;
  Tensors wide;
  for (const Tensor& x : inputs) wide.push_back(is_floating(x.dtype()) ? x.to(DType::f64) : x);
  const Tensors ys = op.run(inputs), exact = op.run(wide);
  for (size_t i = 0; i < ys.size(); ++i) {
    const auto y = ys[i].to_vector(), e = exact[i].to_vector();
    double largest = 1e-3, worst = 0;
    for (double v : e) largest = std::max(largest, std::abs(v));
    for (size_t k = 0; k < y.size(); ++k) {
      const double error = std::abs(y[k] - e[k]);
      worst = error <= worst ? worst : error;  // a NaN is kept
    }
    // Results rounded to integers may fall on either side of a half.
    if (worst <= (is_floating(ys[i].dtype()) ? 1e-4 * largest : 1)) continue;
    std::ostringstream text;
    text << "output " << i << ": f32 is off by " << worst << " of " << largest;
    return text.str();
  }
  return "";
}

std::string red_check(const OpCase& op, const Tensors& inputs) {
  for (const Shapes& shapes : op.check)
    if (const std::string wrong = wrong_gradient(op, shapes); !wrong.empty()) return wrong;
  return wrong_values(op, inputs);
}

// The tensors of a row, made when it is first used and shared by its check and its runs.
struct Work {
  const OpCase& op;
  Shapes shapes;
  Tensors inputs = {}, cotangents = {};
  void prepare() {
    if (inputs.empty()) inputs = make_inputs(op, shapes, DType::f32, 1);
  }
  void forward() {
    prepare();
    const NoGrad off;
    op.run(inputs);
  }
  void forward_and_backward() {
    prepare();
    const Tensors ys = op.run(as_leaves(op, inputs));
    if (cotangents.empty())
      for (const Tensor& y : ys) cotangents.push_back(ones(y.shape(), y.dtype()));
    run_backward(ys, cotangents);
  }
};

}  // namespace

std::vector<Row> op_rows(bool with_backward) {
  std::vector<Row> rows;
  for (const OpCase* op : all_op_cases()) {
    for (const Shapes& shapes : op->bench) {
      std::ostringstream name;
      name << op->name;
      for (const Shape& s : shapes) name << ' ' << s;
      if (with_backward) name << " +backward";
      const auto work = std::make_shared<Work>(Work{*op, shapes});
      Row row;
      row.name = name.str();
      row.op = op->name;
      row.shapes = shapes;
      row.red = [work] {
        work->prepare();
        return red_check(work->op, work->inputs);
      };
      if (with_backward) {
        row.run = [work] { work->forward_and_backward(); };
      } else {
        row.run = [work] { work->forward(); };
        row.bytes = op->bytes(shapes);
        row.flops = op->flops(shapes);
      }
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

}  // namespace rivulet::bench
