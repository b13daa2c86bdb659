#include "train/edit_training.h"

#include <algorithm>

#include "ops/elementwise.h"
#include "ops/shape.h"

namespace rivulet {

std::vector<int64_t> chunk_lengths(const EditModelConfig& config, int64_t frames) {
  std::vector<int64_t> lengths;
  int64_t next = config.first_chunk_frames;
  for (int64_t rest = frames; rest >= next; rest -= lengths.back(), next = config.dit.chunk_frames)
    lengths.push_back(next);
  check(!lengths.empty(), "training: clips of ", frames, " frames are shorter than the first chunk, ",
        config.first_chunk_frames);
  return lengths;
}

EditTraining::EditTraining(EditModel& model, const TrainConfig& config, std::function<EditPair(int64_t)> pair,
                           int workers)
    : model_(model), config_(config), pair_(std::move(pair)), workers_(workers) {}

StepLoss EditTraining::loss(int64_t step, int64_t micro, Rng& rng) {
  const int64_t batch = step * config_.accumulate + micro;
  if (batch != next_) {  // the first call, or a jump
    ahead_ = std::make_unique<Prefetch<EditPair>>(pair_, batch * config_.batch, 2 * config_.batch, workers_);
    next_ = batch;
  }
  ++next_;
  Tensors sources, targets;
  std::vector<std::string> texts;
  std::vector<double> levels;
  std::vector<double> told;
  for (int64_t b = 0; b < config_.batch; ++b) {
    EditPair pair = ahead_->next();
    sources.push_back(pair.source);
    targets.push_back(pair.target);
    const bool drop = draw_text_dropout(rng, config_.flow.text_dropout);
    texts.push_back(drop ? "" : pair.instruction);
    const NoiseLevel level =
        draw_level(rng, config_.flow.shift, config_.flow.logit_mean, config_.flow.logit_std);
    levels.push_back(level.sigma);
    told.push_back(double(level.t));
  }
  const Device device = model_.device();
  const Tensor source = cat(sources, 0).to(device), target = cat(targets, 0).to(device);
  const Tensor sigma = Tensor::of(levels, {config_.batch}).to(device),
               t = Tensor::of(told, {config_.batch}).to(device);
  const TextContext text = model_.encode(texts);

  const auto lengths = chunk_lengths(model_.config(), target.dim(2));
  StreamState memory;
  Tensor total;
  int64_t at = 0;
  for (size_t c = 0; c < lengths.size(); ++c) {
    const SourceLatents s = model_.source(source.slice(2, at, at + lengths[c]));
    const Tensor x0 = target.slice(2, at, at + lengths[c]);
    at += lengths[c];
    const Tensor noise = randn(x0.shape(), rng, DType::f32, device);
    const Tensor v = model_.velocity(add_noise(x0, noise, levels), s, sigma, t, text, &memory);
    const Tensor part = flow_matching_loss(v, noise, x0) * (double(lengths[c]) / double(target.dim(2)));
    total = total.defined() ? total + part : part;
    if (c + 1 < lengths.size()) memory = model_.remember(x0, s.latents, text, memory);
  }
  return {total};
}

}  // namespace rivulet
