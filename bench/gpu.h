// Timing on the GPU: every op between two marks of its stream, with its inputs in memory (cold) or in the
// second-level cache as far as they fit (warm).
#pragma once

#include <nlohmann/json.hpp>
#include <regex>

#include "ops/case.h"

namespace rivulet::bench {

struct GpuSettings {
  DType dtype = DType::bf16;
  int repetitions = 15;
  bool backward = false;  // forward and backward together
};

// The result file of all rows whose name matches; `red` counts those whose results are wrong.
nlohmann::json run_on_gpu(const std::regex& pattern, const GpuSettings& settings, int& red);

// The delta net's layer and its inside, and the attention, of the 2B network at 1280x704: what the reference
// was timed on.
nlohmann::json time_layers(int repetitions, int& red);

// What running `op` is on random inputs of these shapes, which are made at once.
std::function<void()> op_work(const OpCase& op, const Shapes& shapes, DType dtype, bool with_backward);

// One training step of the 2B bidirectional network (20 blocks; fewer for a profile) with random weights:
// forward and backward for 11 latent frames at 1280x704, bf16, blocks run again in the backward. Times of
// forward and of both, and peak memory.
nlohmann::json time_training_step(int repetitions, int64_t depth);

}  // namespace rivulet::bench
