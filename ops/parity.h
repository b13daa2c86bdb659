// Whether an op gives the same answer on a device, in a dtype, as the CPU gives in f64 (in f32 for bf16 on
// the benchmark's shapes): results and gradients for a random cotangent, on dense inputs and on strided and
// misaligned views. Every tensor of the run lies in memory filled with NaN, and a second run must give the
// same bits.
#pragma once

#include "ops/case.h"

namespace rivulet {

struct ParityRow {
  std::string op;
  DType dtype;
  bool bench = false;  // the shapes of the benchmark instead of the check shapes
  // Largest |got - want| / (|want| + rms(want)) over all shapes, views and outputs (gradients). The rms
  // counts as at least a tenth of the largest among the run's outputs (gradients), since some gradients
  // vanish by cancelling. Integer results count only where they differ by more than one.
  double forward = 0, backward = 0;
  double tolerance = 0;
  double seconds = 0;         // that the check took, the reference on the CPU included
  std::string worst_at = {};  // the shapes and view of the largest error
  std::string failure = {};   // an exception's text, or how the second run differed
  bool passed() const { return failure.empty() && forward <= tolerance && backward <= tolerance; }
};

// 2e-5 for f32: what sums of some thousand terms lose. 2^-7 for bf16: a few roundings of 2^-9.
double parity_tolerance(DType dtype);

ParityRow check_parity(const OpCase& op, Device device, DType dtype, bool bench);

// One line: op, dtype, both errors, seconds, verdict.
std::string to_string(const ParityRow& row);

}  // namespace rivulet
