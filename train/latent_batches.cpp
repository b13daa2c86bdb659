#include "train/latent_batches.h"

#include <algorithm>

#include "ops/elementwise.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

constexpr int64_t kFramesAtOnce = 16;

Tensor vae_encode(const VideoVae& vae, const Tensor& frames) {
  const NoGrad off;
  VideoState state;
  Tensors parts;
  for (int64_t at = 0; at < frames.dim(1); at += kFramesAtOnce) {
    const Tensor piece = frames.slice(1, at, std::min(frames.dim(1), at + kFramesAtOnce));
    const Tensor z = vae.encode(piece.to(vae.device()) * 2.0 - 1.0, state);
    if (z) parts.push_back(z);
  }
  return cat(parts, 2).contiguous();
}

Tensor vae_decode(const VideoVae& vae, const Tensor& latents) {
  const NoGrad off;
  return clamp(vae.decode(latents, false) * 0.5 + 0.5, 0, 1);
}

}  // namespace

LatentSpace identity_space(Device device) {
  const auto last = [](const Tensor& z) { return z.slice(2, z.dim(2) - 1, z.dim(2)); };
  return {[device](const Tensor& x) { return x.to(device); },
          [](const Tensor& z) { return z.to(Device::cpu); }, last};
}

LatentSpace patch_space(const PatchCodec& codec, Device device) {
  LatentSpace space =
      identity_space(device);  // every frame is a latent: a picture by itself encodes to the same
  space.encode = [codec, device](const Tensor& frames) {
    Tensors clips;
    for (int64_t b = 0; b < frames.dim(0); ++b) clips.push_back(codec.encode(frames.select(0, b)));
    return cat(clips, 0).to(device);
  };
  space.decode = [codec](const Tensor& latents) {
    Tensors clips;
    for (int64_t b = 0; b < latents.dim(0); ++b)
      clips.push_back(codec.decode(latents.slice(0, b, b + 1).to(Device::cpu)).unsqueeze(0));
    return cat(clips, 0);
  };
  return space;
}

LatentSpace vae_space(const VideoVae& vae) {
  const auto last = [&vae](const Tensor& z) {
    const Tensor frames = vae_decode(vae, z);
    return vae_encode(vae, frames.slice(1, frames.dim(1) - 1, frames.dim(1)));
  };
  return {[&vae](const Tensor& frames) { return vae_encode(vae, frames); },
          [&vae](const Tensor& z) { return vae_decode(vae, z).to(Device::cpu); }, last};
}

LatentBatches::LatentBatches(Examples examples, LatentSpace space, int64_t batch, int workers)
    : examples_(std::move(examples)), space_(std::move(space)), batch_(batch), workers_(workers) {
  check(batch >= 1, "training: a batch of ", batch);
}

LatentBatch LatentBatches::get(int64_t index) {
  if (index != next_) {  // the first call, or a jump
    ahead_ = std::make_unique<Prefetch<Example>>(examples_, index * batch_, 2 * batch_, workers_);
    next_ = index;
  }
  ++next_;
  Tensors sources, targets;
  LatentBatch out;
  for (int64_t b = 0; b < batch_; ++b) {
    Example e = ahead_->next();
    sources.push_back(e.source.unsqueeze(0));
    if (e.target) targets.push_back(e.target.unsqueeze(0));
    out.instructions.push_back(std::move(e.instruction));
    out.reverse_instructions.push_back(std::move(e.reverse_instruction));
  }
  check(targets.empty() || targets.size() == sources.size(), "training: ", targets.size(), " of ", batch_,
        " examples of a batch have a target");
  const NoGrad off;
  out.source = space_.encode(cat(sources, 0));
  if (!targets.empty()) out.target = space_.encode(cat(targets, 0));
  return out;
}

}  // namespace rivulet
