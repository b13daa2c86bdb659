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
//
// dtype is that of the weights and activations. f32 is held to dit.md section 11. bf16 is held to what the
// reference's own rounding points cost (dit.md 5.1): the CPU, where every op is computed in f32 and its result
// rounded, goes through the same network in bf16, and the device may be 1.5 times as far from the f32 file as
// that. Gradients are then compared as one vector, since the rounding of a weight flips single ReLUs.
std::vector<GoldenRow> run_golden(const SafeTensors& file, Device device = Device::cpu,
                                  DType dtype = DType::f32);

}  // namespace rivulet
