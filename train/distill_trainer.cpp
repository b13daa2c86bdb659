#include "train/distill_trainer.h"

#include <chrono>
#include <cmath>

namespace rivulet {
namespace {

constexpr uint64_t kStudentStream = 1, kFakeStream = 2, kExitStream = 3;

NamedTensors under(const std::string& prefix, const NamedTensors& list) {
  NamedTensors named;
  for (const auto& [name, tensor] : list) named.emplace_back(prefix + name, tensor.detach());
  return named;
}

}  // namespace

DistillTrainer::Player::Player(NamedTensors p, const AdamWOptions& options, double clip)
    : params(std::move(p)), optimizer(params, options), clip_norm(clip) {
  check(!params.empty(), "DistillTrainer: a network has no parameters");
  set_requires_grad(params, true);
}

DistillTrainer::DistillTrainer(TrainConfig config, const SelfForcingOptions& options, SelfForcing& stage,
                               NamedTensors student, NamedTensors fake)
    : config_(std::move(config)),
      options_(options),
      stage_(stage),
      student_(std::move(student), config_.optimizer, config_.clip_norm),
      fake_(std::move(fake), options.critic, options.critic_clip_norm),
      ema_(student_.optimizer.masters(), config_.ema_decay, config_.ema_start) {}

bool DistillTrainer::resume_latest() {
  const auto path = latest_checkpoint(config_.dir);
  if (!path) return false;
  const RunState state = load_checkpoint(*path, student_.params, student_.optimizer, ema_);
  const SafeTensors file(*path);
  load_tensors(under("", fake_.params), file, "critic.");
  load_tensors(fake_.optimizer.state(), file, "critic_optimizer.");
  stage_.load(file, state.progress);
  steps_done_ = saved_at_ = state.step;
  fake_.optimizer.set_steps_done(steps_done_);
  student_.optimizer.set_steps_done((steps_done_ + options_.ratio - 1) / options_.ratio);
  return true;
}

void DistillTrainer::save() {
  if (saved_at_ == steps_done_) return;
  std::map<std::string, Tensor> others;
  for (const auto& [name, t] : under("critic.", fake_.params)) others[name] = t;
  for (const auto& [name, t] : under("critic_optimizer.", fake_.optimizer.state())) others[name] = t;
  const Json progress = stage_.save(others);
  save_checkpoint(checkpoint_path(config_.dir, steps_done_),
                  {steps_done_, Rng{uint64_t(config_.seed)}, to_json(config_), progress}, student_.params,
                  student_.optimizer, ema_, others);
  prune_checkpoints(config_.dir, config_.keep);
  saved_at_ = steps_done_;
}

DistillTrainer::Update DistillTrainer::update(Player& player, const LossFn& loss_of, double lr, Rng rng) {
  Update u;
  const double share = 1.0 / double(config_.accumulate);
  zero_grad(player.params);
  for (int64_t group = 0; group < config_.accumulate; ++group) {
    Rng own = rng.fork(uint64_t(group));
    const StepLoss result = loss_of(group, own);
    const double value = result.loss.item();
    check(std::isfinite(value), "train: the loss of step ", steps_done_, " is ", value);
    backward(result.loss, full(result.loss.shape(), share, result.loss.dtype(), result.loss.device()));
    u.loss += value * share;
    for (const auto& [name, number] : result.metrics)
      u.metrics[name] = u.metrics.value(name, 0.0) + number * share;
  }
  u.grad_norm = grad_norm(player.params);
  check(std::isfinite(u.grad_norm), "train: the gradient norm of step ", steps_done_, " is ", u.grad_norm);
  player.optimizer.step(lr, clip_scale(u.grad_norm, player.clip_norm));
  if (constrain_) {
    constrain_(player.optimizer.masters());
    player.optimizer.round_masters();
  }
  zero_grad(player.params);
  return u;
}

Json DistillTrainer::step() {
  const auto begin = std::chrono::steady_clock::now();
  const Rng rng = Rng{uint64_t(config_.seed)}.fork(uint64_t(steps_done_));
  Rng exit_rng = rng.fork(kExitStream);
  const double lr = config_.schedule.at(steps_done_);
  const double critic_lr = options_.critic_lr * lr / config_.schedule.lr;
  Json line = {{"step", steps_done_ + 1}, {"lr", lr}};
  if (options_.student_turn(steps_done_)) {
    const ExitSteps exits = stage_.draw_exits(exit_rng);
    const auto loss = [&](int64_t group, Rng& own) { return stage_.student_loss(group, exits, own); };
    const Update u = update(student_, loss, lr, rng.fork(kStudentStream));
    line["student_loss"] = u.loss;
    line["student_grad_norm"] = u.grad_norm;
    line["exit"] = exits.forward;
    line.update(u.metrics);
    ema_.update(steps_done_);
  }
  const ExitSteps exits = stage_.draw_exits(exit_rng);
  const auto loss = [&](int64_t group, Rng& own) { return stage_.critic_loss(group, exits, own); };
  const Update u = update(fake_, loss, critic_lr, rng.fork(kFakeStream));
  line["loss"] = last_loss_ = u.loss;
  line["grad_norm"] = u.grad_norm;
  line["clip"] = stage_.stream(0).clip;
  line["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ++steps_done_;
  return line;
}

bool DistillTrainer::run(std::ostream* out, const std::atomic<bool>* stop) {
  return run_steps(config_, steps_done_, {[this] { return step(); }, [this] { save(); }, sample_}, out, stop);
}

}  // namespace rivulet
