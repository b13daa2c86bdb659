// The learning rate of each step.
#pragma once

#include <cstdint>
#include <string>

namespace rivulet {

// Linear warm-up, then constant or a half cosine down to final_fraction * lr at the last step.
struct Schedule {
  double lr = 1e-3;
  int64_t warmup = 0;  // steps; step 0 gets lr / warmup, step warmup - 1 gets lr
  int64_t steps = 0;   // length of the run, warm-up included (cosine)
  bool cosine = false;
  double final_fraction = 0;

  // Steps count from 0; past the end the last value holds.
  double at(int64_t step) const;
};

}  // namespace rivulet
