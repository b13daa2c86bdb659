#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>

#include "train/progress.h"

namespace rivulet {
namespace {

namespace fs = std::filesystem;

using Clock = std::chrono::steady_clock;

// The whole lines of a metrics file that belong to the first `steps_done` steps.
std::string kept_lines(const std::string& text, int64_t steps_done) {
  std::string kept;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = text.substr(begin, end - begin);
    const Json j = Json::parse(line, nullptr, false);
    if (!j.is_object() || !j.contains("step") || !j["step"].is_number_integer()) break;
    if (j["step"].get<int64_t>() > steps_done) break;
    kept += line + "\n";
  }
  return kept;
}

std::string short_number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", x);
  return text;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, int64_t steps_done) : path_(path) {
  const bool continues = steps_done > 0 && fs::exists(path);
  write_file(path, continues ? kept_lines(read_file(path), steps_done) : "");
  file_.open(path, std::ios::app);
  check(file_.good(), path, ": cannot be opened for writing");
}

void MetricsLog::write(const Json& line) {
  file_ << line.dump() << std::endl;
  check(file_.good(), path_, ": writing failed (is the disk full?)");
}

Trainer::Trainer(TrainConfig config, NamedTensors params, StepFn loss_of)
    : config_(std::move(config)),
      params_(std::move(params)),
      loss_of_(std::move(loss_of)),
      optimizer_(params_, config_.optimizer),
      ema_(optimizer_.masters(), config_.ema_decay, config_.ema_start),
      rng_{static_cast<uint64_t>(config_.seed), 0} {
  check(!params_.empty(), "Trainer: there are no parameters");
  for (const auto& [name, param] : params_)
    check(param.autograd() != nullptr, "Trainer: ", name,
          " does not share its gradient with the model's own tensor; list parameters with named_tensors()");
  set_requires_grad(params_, true);
}

bool Trainer::resume_latest() {
  const auto path = latest_checkpoint(config_.dir);
  if (path) resume(*path);
  return path.has_value();
}

void Trainer::resume(const std::string& checkpoint) {
  const RunState state = load_checkpoint(checkpoint, params_, optimizer_, ema_);
  rng_ = state.rng;
  steps_done_ = saved_at_ = state.step;
}

void Trainer::save() {
  if (saved_at_ == steps_done_) return;
  save_checkpoint(checkpoint_path(config_.dir, steps_done_), {steps_done_, rng_, to_json(config_)}, params_,
                  optimizer_, ema_);
  prune_checkpoints(config_.dir, config_.keep);
  saved_at_ = steps_done_;
}

Json Trainer::step() {
  const auto begin = Clock::now();
  const double share = 1.0 / static_cast<double>(config_.accumulate);
  double loss = 0;
  Json extra = Json::object();
  zero_grad(params_);
  for (int64_t micro = 0; micro < config_.accumulate; ++micro) {
    Rng rng = rng_.fork(static_cast<uint64_t>(steps_done_)).fork(static_cast<uint64_t>(micro));
    const StepLoss result = loss_of_(steps_done_, micro, rng);
    const double value = result.loss.item();
    check(std::isfinite(value), "train: the loss of step ", steps_done_, " is ", value);
    backward(result.loss, full(result.loss.shape(), share, result.loss.dtype(), result.loss.device()));
    loss += value * share;
    for (const auto& [name, number] : result.metrics) extra[name] = extra.value(name, 0.0) + number * share;
  }
  const bool reached =
      std::any_of(params_.begin(), params_.end(), [](auto& p) { return p.second.grad().defined(); });
  check(reached, "train: no parameter got a gradient from the loss of step ", steps_done_);
  const double norm = grad_norm(params_), lr = config_.schedule.at(steps_done_);
  check(std::isfinite(norm), "train: the gradient norm of step ", steps_done_, " is ", norm);
  optimizer_.step(lr, clip_scale(norm, config_.clip_norm));
  if (constrain_) {
    constrain_(optimizer_.masters());
    optimizer_.round_masters();
  }
  ema_.update(steps_done_);
  zero_grad(params_);
  ++steps_done_;
  last_loss_ = loss;
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const double samples = static_cast<double>(config_.batch * config_.accumulate);
  Json line = {{"step", steps_done_}, {"loss", loss},       {"lr", lr},
               {"grad_norm", norm},   {"seconds", seconds}, {"samples_per_second", samples / seconds}};
  line.update(extra);
  return line;
}

bool Trainer::run(std::ostream* out, const std::atomic<bool>* stop) {
  return run_steps(config_, steps_done_, {[this] { return step(); }, [this] { save(); }, sample_}, out, stop);
}

bool run_steps(const TrainConfig& config, const int64_t& steps_done, const RunLoop& loop, std::ostream* out,
               const std::atomic<bool>* stop) {
  std::error_code ec;
  fs::create_directories(config.dir, ec);
  check(!ec, config.dir, ": cannot be created: ", ec.message());
  const auto newest = latest_checkpoint(config.dir);
  check(!newest || checkpoint_step(*newest) <= steps_done, newest.value_or(""),
        " is from a former run; resume it or choose another folder");
  MetricsLog log((fs::path(config.dir) / "metrics.jsonl").string(), steps_done);
  std::unique_ptr<Progress> progress;
  if (out) {
    progress = std::make_unique<Progress>("train", config.steps, *out);
    progress->start_at(steps_done);
  }
  double smooth = 0;  // a running mean of the loss, for the eye only
  int64_t shown = 0;
  auto stopped = [&] { return stop && stop->load(); };
  while (steps_done < config.steps && !stopped()) {
    const Json line = loop.step();
    const bool last = steps_done == config.steps;
    if (steps_done % config.log_every == 0 || last) log.write(line);
    const double weight = 1.0 / static_cast<double>(std::min<int64_t>(++shown, 50));
    smooth += (line.at("loss").get<double>() - smooth) * weight;
    if (progress) progress->update(steps_done, "loss " + short_number(smooth));
    if (config.checkpoint_every > 0 && steps_done % config.checkpoint_every == 0) loop.save();
    if (loop.sample && config.sample_every > 0 && (last || steps_done % config.sample_every == 0)) {
      const NoGrad off;
      loop.sample(steps_done);
    }
  }
  if (steps_done > 0) loop.save();
  if (progress) progress->finish("loss " + short_number(smooth));
  return steps_done >= config.steps;
}

}  // namespace rivulet
