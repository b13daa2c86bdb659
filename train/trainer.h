// The training loop, for any model: the caller gives the parameters and a function that returns the loss.
#pragma once

#include <atomic>
#include <fstream>
#include <functional>

#include "train/checkpoint.h"
#include "train/config.h"

namespace rivulet {

struct StepLoss {
  Tensor loss;                                               // scalar, on the tape
  std::vector<std::pair<std::string, double>> metrics = {};  // logged beside it, averaged over micro-batches
};
// The mean loss of micro-batch `micro` of step `step` (both from 0). Micro-batch k = step * accumulate +
// micro covers samples k * batch to (k + 1) * batch - 1 of the run. `rng` depends on (seed, step, micro)
// alone, so a resumed run draws what an uninterrupted one would have drawn.
using StepFn = std::function<StepLoss(int64_t step, int64_t micro, Rng& rng)>;

// Writes a run's metrics as JSON lines; each line is flushed at once.
class MetricsLog {
 public:
  // Keeps the lines of a former run up to and including step `steps_done`, and drops what follows
  // (steps that are about to be repeated, a line torn by a kill).
  MetricsLog(const std::string& path, int64_t steps_done);
  void write(const Json& line);

 private:
  std::string path_;
  std::ofstream file_;
};

// The loop of a run: from `steps_done` steps to config.steps, one line of metrics.jsonl each. Stops early
// when `stop` is raised, which is looked at after each step. Ends with a checkpoint. True when all steps are
// done.
struct RunLoop {
  std::function<Json()> step;                      // advances steps_done; returns the line, with its "loss"
  std::function<void()> save;                      // a checkpoint
  std::function<void(int64_t steps_done)> sample;  // may be empty
};
bool run_steps(const TrainConfig& config, const int64_t& steps_done, const RunLoop& loop, std::ostream* out,
               const std::atomic<bool>* stop);

class Trainer {
 public:
  // params: from named_tensors(), whose handles share their gradients with the model. Sets requires_grad.
  Trainer(TrainConfig config, NamedTensors params, StepFn loss_of);

  // Called after every optimizer step, before the average follows: for constraints on the weights. It gets
  // the f32 values that are trained; half parameters are rounded from them again afterwards.
  void on_step(std::function<void(const NamedTensors& masters)> constrain) {
    constrain_ = std::move(constrain);
  }
  // Called after every config.sample_every steps and at the end, with the number of steps done, under NoGrad.
  // Sample with the average through EmaScope(trainer.ema(), trainer.params()).
  void on_sample(std::function<void(int64_t steps_done)> sample) { sample_ = std::move(sample); }
  // What is already done: continues from the newest checkpoint in config.dir. False when there is none.
  bool resume_latest();
  void resume(const std::string& checkpoint);

  // Trains to config.steps, or stops early: `stop` is looked at after each step. Either way ends with a
  // checkpoint. Progress goes to `out` (nowhere when null). Returns true when all steps are done.
  // Throws when the loss or a gradient is no longer finite; the last checkpoint stays.
  bool run(std::ostream* out = nullptr, const std::atomic<bool>* stop = nullptr);

  int64_t steps_done() const { return steps_done_; }
  double last_loss() const { return last_loss_; }
  const Ema& ema() const { return ema_; }
  const NamedTensors& params() const { return params_; }
  // The trained values in f32: the average once there is one, otherwise the optimizer's own.
  NamedTensors result() const { return ema_.active() ? ema_.average() : optimizer_.masters(); }
  const TrainConfig& config() const { return config_; }

 private:
  Json step();  // one optimizer step; the line for the log
  void save();

  TrainConfig config_;
  NamedTensors params_;
  StepFn loss_of_;
  AdamW optimizer_;
  Ema ema_;  // of the optimizer's master copies
  Rng rng_;
  std::function<void(const NamedTensors&)> constrain_;
  std::function<void(int64_t)> sample_;
  int64_t steps_done_ = 0, saved_at_ = -1;
  double last_loss_ = 0;
};

}  // namespace rivulet
