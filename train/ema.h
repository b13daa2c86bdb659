// Exponential moving average of the parameters, kept in f32.
#pragma once

#include "nn/module.h"

namespace rivulet {

class Ema {
 public:
  // decay 0 turns it off. The average is created as a copy of the parameters after optimizer step
  // `start_step` (counted from 0) and follows them from the next step on.
  Ema(NamedTensors params, double decay, int64_t start_step);

  // Call after optimizer step `step`: average = decay * average + (1 - decay) * parameter.
  void update(int64_t step);
  bool active() const { return !average_.empty(); }
  // f32 tensors under the parameters' names; empty until active. They share the average's own data.
  const NamedTensors& average() const { return average_; }
  // Creates the average (holding the parameters' values now) for a checkpoint to read into.
  void create();

 private:
  NamedTensors params_, average_;
  double decay_;
  int64_t start_step_;
};

// While in scope the parameters hold the average's values (nothing changes while it is not active), for
// samples and evaluation in the middle of training. Afterwards they are restored bit for bit.
class EmaScope {
 public:
  EmaScope(const Ema& ema, const NamedTensors& params);
  ~EmaScope();
  EmaScope(const EmaScope&) = delete;
  EmaScope& operator=(const EmaScope&) = delete;

 private:
  NamedTensors params_;
  Tensors saved_;
};

}  // namespace rivulet
