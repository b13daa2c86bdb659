// The stages of training that look at whole clips with targets (training.md 1 and 2.2): flow matching of the
// bidirectional editor, and ODE initialisation of the few-step student.
#pragma once

#include "train/latent_batches.h"
#include "train/ode_init.h"
#include "train/trainer.h"

namespace rivulet {

// What every stage may set, in the config's "stage": {"dtype": "f32" or "bf16", "recompute": true}.
struct ComputeOptions {
  std::string dtype = "f32";  // of the parameters in the network; f32 master copies are what is trained
  bool recompute = false;     // blocks run again in the backward instead of being kept
};
ComputeOptions read_compute_options(Fields& stage);
// Converts and moves nothing but what the options say. Before named_tensors().
void prepare(EditModel& model, const ComputeOptions& options);

// Flow matching on whole clips: one level per clip, text dropped at config.flow.text_dropout, the source
// never. "stage": the compute options alone.
class FlowStage {
 public:
  FlowStage(const EditModel& model, const TrainConfig& config, LatentBatches& pairs)
      : model_(model), config_(config), pairs_(pairs) {}
  // See StepFn.
  StepLoss loss(int64_t step, int64_t micro, Rng& rng);

 private:
  const EditModel& model_;
  const TrainConfig& config_;
  LatentBatches& pairs_;
};
// The loss of one batch at given levels: mean of (v - (eps - x0))^2.
Tensor clip_flow_loss(const EditNet& net, const Tensor& x0, const Tensor& eps, const Tensor& source,
                      const Tensor& sigma, const Tensor& t, const TextContext& text);

// "stage": {"teacher": DIR, "trajectories": DIR, "count": 512, "teacher_batch": 8, "solver_steps": 50,
//           "guidance": 3, "student_steps": [1000, 961, 893, 743]} and the compute options.
struct OdeOptions {
  ComputeOptions compute;
  std::string teacher, trajectories;
  int64_t count = 512, teacher_batch = 8;
  TeacherOptions solver = {.solver_steps = 50, .guidance = 3};
};
OdeOptions read_ode_options(Fields stage);

// Makes the shards that are not there yet, one batch of `examples` each, on the teacher's device. Looks at
// `stop` between shards; `progress` hears of trajectories done. True when all are there.
bool make_trajectories(const EditModel& teacher, const OdeOptions& options, LatentBatches& examples,
                       uint64_t seed, const std::atomic<bool>* stop,
                       const std::function<void(int64_t)>& progress);

class OdeStage {
 public:
  OdeStage(const EditModel& student, const TrainConfig& config, const OdeOptions& options);
  StepLoss loss(int64_t step, int64_t micro, Rng& rng);

 private:
  const EditModel& student_;
  const TrainConfig& config_;
  OdeOptions options_;
  TrajectoryStore store_;
};

}  // namespace rivulet
