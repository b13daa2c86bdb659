#include "train/ema.h"

#include "ops/optim.h"

namespace rivulet {
namespace {

// Writes into a parameter without the tape seeing it.
void overwrite(const Tensor& param, const Tensor& value) { param.detach().copy_from(value); }

}  // namespace

Ema::Ema(NamedTensors params, double decay, int64_t start_step)
    : params_(std::move(params)), decay_(decay), start_step_(start_step) {
  check(decay >= 0 && decay < 1, "Ema: decay is ", decay, ", must be at least 0 and below 1");
}

void Ema::create() {
  NoGrad off;
  average_.clear();
  for (const auto& [name, param] : params_) {
    const Tensor copy(param.shape(), DType::f32, param.device());
    copy.copy_from(param.detach());
    average_.emplace_back(name, copy);
  }
}

void Ema::update(int64_t step) {
  if (decay_ == 0 || step < start_step_) return;
  if (!active()) return create();
  NoGrad off;
  for (size_t i = 0; i < params_.size(); ++i) ema_update(average_[i].second, params_[i].second, decay_);
}

EmaScope::EmaScope(const Ema& ema, const NamedTensors& params) {
  if (!ema.active()) return;
  NoGrad off;
  const NamedTensors& average = ema.average();
  check(average.size() == params.size(), "EmaScope: ", params.size(), " parameters, but the average has ",
        average.size());
  params_ = params;
  for (size_t i = 0; i < params.size(); ++i) {
    saved_.push_back(params[i].second.detach().clone());
    overwrite(params[i].second, average[i].second);
  }
}

EmaScope::~EmaScope() {
  NoGrad off;
  for (size_t i = 0; i < params_.size(); ++i) overwrite(params_[i].second, saved_[i]);
}

}  // namespace rivulet
