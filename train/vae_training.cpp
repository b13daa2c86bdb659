#include "train/vae_training.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "train/video_losses.h"

namespace rivulet {

VaeLossWeights read_vae_loss_weights(Fields f) {
  VaeLossWeights w;
  f.optional("charbonnier", w.charbonnier, at_least(0));
  f.optional("haar", w.haar, at_least(0));
  f.optional("laplacian", w.laplacian, at_least(0));
  f.optional("kl", w.kl, at_least(0));
  f.optional("features", w.features, at_least(0));
  f.done();
  return w;
}

Tensor reconstruction_loss(const VaeLossWeights& w, const Tensor& output, const Tensor& video) {
  Tensor total = charbonnier(output, video, 1e-3) * w.charbonnier;
  if (w.haar > 0) total = total + haar_loss(output, video) * w.haar;
  if (w.laplacian > 0) total = total + laplacian_loss(output, video) * w.laplacian;
  return total;
}

VaeTraining::VaeTraining(const VideoVae& model, const TrainConfig& config,
                         std::function<Tensor(int64_t)> clip, int workers, const VideoVae* teacher)
    : model_(model),
      teacher_(teacher),
      config_(config),
      weights_(read_vae_loss_weights(Fields(config.loss, "loss"))),
      clip_(std::move(clip)),
      workers_(workers) {}

Tensor VaeTraining::next_batch(int64_t index) {
  if (index != next_) {  // the first call, or a jump
    ahead_ = std::make_unique<Prefetch<Tensor>>(clip_, index * config_.batch, 2 * config_.batch, workers_);
    next_ = index;
  }
  ++next_;
  Tensors clips;
  for (int64_t b = 0; b < config_.batch; ++b) clips.push_back(ahead_->next().unsqueeze(0));
  return cat(clips, 0).to(model_.device()) * 2.0 - 1.0;
}

StepLoss VaeTraining::loss(int64_t step, int64_t micro, Rng& rng) {
  const Tensor video = next_batch(step * config_.accumulate + micro);
  const int64_t c = model_.config().latent_channels;
  Tensor output, total;
  if (teacher_) {
    Tensors features, wanted;
    Tensor z;
    {
      const NoGrad off;
      z = teacher_->encode(video);
      teacher_->decode(z, false, wanted);
    }
    output = model_.decode(z, true, features);
    total = reconstruction_loss(weights_, output, video);
    for (Tensors* side : {&features, &wanted})
      for (Tensor& t : *side) t = t.to(DType::f32);
    if (weights_.features > 0) total = total + feature_loss(features, wanted) * weights_.features;
  } else {
    const Tensor moments = model_.moments(video);
    const Tensor mu = moments.slice(4, 0, c), log_variance = clamp(moments.slice(4, c, c + 1), -30, 20);
    const Tensor noise = randn(mu.shape(), rng, DType::f32, model_.device());
    const Tensor sample = mu + noise * exp(log_variance * 0.5);
    output = model_.decode(model_.normalised(sample), false);
    total = reconstruction_loss(weights_, output, video) + kl_loss(mu, log_variance) * weights_.kl;
  }
  const NoGrad off;
  const double error = mse_loss(output.detach(), video).item() / 4;  // pixels in [0, 1]
  return {total, {{"psnr", -10 * std::log10(std::max(error, 1e-12))}}};
}

NamedTensors trained_tensors(VideoVae& model, const TrainConfig& config) {
  NamedTensors chosen;
  for (const auto& item : named_tensors(model)) {
    const bool statistics = item.first.rfind("latents_", 0) == 0,
               decoder = item.first.rfind("decoder.", 0) == 0;
    if (!statistics && (decoder || config.task == "vae")) chosen.push_back(item);
  }
  return chosen;
}

void measure_latents(VideoVae& model, const Tensors& clips) {
  check(!clips.empty(), "measure_latents: no clips");
  const NoGrad off;
  const int64_t c = model.config().latent_channels;
  Tensors rows;
  for (const Tensor& clip : clips)
    rows.push_back(
        model.moments(clip.unsqueeze(0).to(model.device()) * 2.0 - 1.0).slice(4, 0, c).reshape({-1, c}));
  const Tensor all = cat(rows, 0), centre = mean(all, {0});
  model.latents_mean.copy_from(centre);
  model.latents_std.copy_from(sqrt(mean(square(all - centre), {0})) + 1e-6);
}

}  // namespace rivulet
