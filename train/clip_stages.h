// The stages of training that look at whole clips with targets (training.md 1 and 2.2): flow matching of the
// bidirectional editor, and ODE initialisation of the few-step student.
#pragma once

#include "train/latent_batches.h"
#include "train/ode_init.h"
#include "train/trainer.h"

namespace rivulet {

// How a stage computes: with the config's "compute" bf16 the network holds its parameters in bf16 and f32
// master copies are what is trained; with "recompute" in "stage" blocks run again in the backward instead of
// being kept.
struct ComputeOptions {
  DType dtype = DType::f32;
  bool recompute = false;
};
ComputeOptions read_compute_options(Fields& stage, DType compute);
// Before named_tensors(), whose handles would be left behind.
void prepare(EditModel& model, const ComputeOptions& options);

// Flow matching on whole clips: one level per clip, text dropped at config.flow.text_dropout, the source
// never. "stage": {"recompute": true}.
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
//           "guidance": 3, "student_steps": [1000, 961, 893, 743], "recompute": true}.
struct OdeOptions {
  ComputeOptions compute;
  std::string teacher, trajectories;
  int64_t count = 512, teacher_batch = 8;
  TeacherOptions solver = {.solver_steps = 50, .guidance = 3};
};
OdeOptions read_ode_options(Fields stage, DType compute);

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
