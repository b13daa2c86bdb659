// Comparing our models with the reference, from files that hold its inputs, weights, outputs and gradients.
#pragma once

#include <string>
#include <vector>

#include "tensor/safetensors.h"

namespace rivulet {

// One line of the table: the worst relative error ||ours - theirs|| / ||theirs|| over a kind of tensor.
struct GoldenRow {
  std::string what;
  int64_t compared = 0;  // tensors
  double worst = 0;
  std::string worst_name;
  double tolerance = 0;
  bool passed() const { return compared > 0 && worst <= tolerance; }
};

// ||a - b|| / ||b|| in f64; NaN counts as infinite.
double relative_error(const Tensor& ours, const Tensor& theirs);

// Recognises what the file holds by its tensors and runs it; an empty list for a kind this build has no model
// for. Throws when a file of a known kind is incomplete.
std::vector<GoldenRow> run_golden(const SafeTensors& file, Device device = Device::cpu);

}  // namespace rivulet
