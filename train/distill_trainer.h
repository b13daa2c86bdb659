// The loop of self-forcing: two networks under training, one that follows the other.
#pragma once

#include "train/self_forcing.h"

namespace rivulet {

// The config's optimizer, schedule, clip_norm and average are the student's; the fake score has those of the
// stage's "critic", its rate following the same schedule. Step k: when it is the student's turn, it takes the
// next clip of every stream and a step; then the fake score takes the clip after that. The average moves with
// the student's steps alone. Checkpoints hold both networks and the streams: "critic.<name>",
// "critic_optimizer.<name>", "stream.<group>.<name>".
class DistillTrainer {
 public:
  // Parameters from named_tensors() of the networks that `stage` runs. Sets requires_grad. All but the config
  // must outlive the trainer.
  DistillTrainer(TrainConfig config, const SelfForcingOptions& options, SelfForcing& stage,
                 NamedTensors student, NamedTensors fake);

  // Called for each network after its step, with the f32 values that are trained.
  void on_step(std::function<void(const NamedTensors& masters)> constrain) {
    constrain_ = std::move(constrain);
  }
  void on_sample(std::function<void(int64_t steps_done)> sample) { sample_ = std::move(sample); }
  bool resume_latest();
  bool run(std::ostream* out = nullptr, const std::atomic<bool>* stop = nullptr);

  int64_t steps_done() const { return steps_done_; }
  double last_loss() const { return last_loss_; }  // of the fake score
  const Ema& ema() const { return ema_; }
  const NamedTensors& params() const { return student_.params; }
  // What is trained, in f32: raw values, since a further stage starts from them (training.md 3.6), and the
  // average.
  NamedTensors student_values() const { return student_.optimizer.masters(); }
  NamedTensors fake_values() const { return fake_.optimizer.masters(); }

 private:
  struct Player {
    NamedTensors params;
    AdamW optimizer;
    double clip_norm;
    Player(NamedTensors p, const AdamWOptions& options, double clip);
  };
  using LossFn = std::function<StepLoss(int64_t group, Rng& rng)>;
  struct Update {
    double loss = 0, grad_norm = 0;
    Json metrics = Json::object();
  };
  Update update(Player& player, const LossFn& loss, double lr, Rng rng);
  Json step();
  void save();

  TrainConfig config_;
  SelfForcingOptions options_;
  SelfForcing& stage_;
  Player student_, fake_;
  Ema ema_;  // of the student's master copies
  std::function<void(const NamedTensors&)> constrain_;
  std::function<void(int64_t)> sample_;
  int64_t steps_done_ = 0, saved_at_ = -1;
  double last_loss_ = 0;
};

}  // namespace rivulet
