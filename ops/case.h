// How an op is declared to the machinery that tests and times it: one OpCase drives the gradient check,
// the CPU/CUDA parity test and the benchmark.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tensor/random.h"

namespace rivulet {

using Shapes = std::vector<Shape>;

struct OpCase {
  std::string name;
  // The op on inputs made by `fill`. Several outputs are all checked.
  std::function<Tensors(const Tensors&)> run;
  // Input shapes to check: odd, degenerate (a dim of 1) and ordinary. Keep them small: the gradient check
  // evaluates the op twice per input element, in f64.
  std::vector<Shapes> check;
  // Input shapes to time; the first is the production shape.
  std::vector<Shapes> bench;
  // Fewest bytes moved (each input read once, each output written once) and floating-point operations of
  // one forward run on these shapes, in f32.
  std::function<double(const Shapes&)> bytes, flops;
  // Contents of input i; the default is N(0, 1). Integer tensors are not differentiated.
  std::function<Tensor(const Shape&, int i, Rng&, DType)> fill = {};
  // Which inputs are differentiated; empty means all floating ones.
  std::vector<bool> differentiable = {};
  // Relative tolerance of the f64 gradient check.
  double tolerance = 1e-6;
  // Tolerance of the bf16 parity check where an op's kernels round values inside to bf16; 0 means the usual
  // one.
  double bf16_tolerance = 0;
};

// 4 bytes per element of everything in the list.
double bytes_of(const Shapes& shapes);

}  // namespace rivulet
