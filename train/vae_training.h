// Training a video autoencoder on real footage. Two tasks of `rivulet train`:
//
//   "vae"          the whole autoencoder: charbonnier + haar + laplacian of the reconstruction, and KL. The
//                  decoder is trained as the model's config says: causal, or seeing frames on both sides.
//   "vae_distill"  a causal decoder from one that sees both sides (training.md 5): it starts from the
//   remapped
//                  weights and learns from the real video and from the teacher's features; the encoder stays.
//
// "loss": {"charbonnier": 1, "haar": 0.5, "laplacian": 0.5, "kl": 1e-6, "features": 0.1}; kl is of the first
// task alone, features of the second. Losses are those of train/video_losses.h on pixels in [-1, 1].
#pragma once

#include <functional>
#include <memory>

#include "models/ltx2_vae/vae.h"
#include "train/prefetch.h"
#include "train/trainer.h"

namespace rivulet {

struct VaeLossWeights {
  double charbonnier = 1, haar = 0.5, laplacian = 0.5, kl = 1e-6, features = 0.1;
};
VaeLossWeights read_vae_loss_weights(Fields fields);

// What both tasks ask of a batch: the losses of `output` against the real video, weighted.
Tensor reconstruction_loss(const VaeLossWeights& weights, const Tensor& output, const Tensor& video);

class VaeTraining {
 public:
  // clip(index): f32 [T, H, W, 3] in [0, 1], a function of the index alone, called on worker threads; T is
  // one more than a multiple of the model's temporal stride. teacher: undefined for the task "vae".
  VaeTraining(const VideoVae& model, const TrainConfig& config, std::function<Tensor(int64_t index)> clip,
              int workers = 1, const VideoVae* teacher = nullptr);
  // The loss of the next micro-batch; see StepFn. Also logs the PSNR of the batch.
  StepLoss loss(int64_t step, int64_t micro, Rng& rng);

 private:
  Tensor next_batch(int64_t index);  // [B, T, H, W, 3] in [-1, 1], where the model is

  const VideoVae& model_;
  const VideoVae* teacher_;
  TrainConfig config_;
  VaeLossWeights weights_;
  std::function<Tensor(int64_t)> clip_;
  int workers_;
  int64_t next_ = -1;  // batch that the prefetcher stands at
  std::unique_ptr<Prefetch<Tensor>> ahead_;
};

// What the task trains: everything but the latents' statistics, or the decoder alone.
NamedTensors trained_tensors(VideoVae& model, const TrainConfig& config);

// Sets the latents' mean and standard deviation per channel from what the encoder makes of these clips,
// f32 [T, H, W, 3] in [0, 1].
void measure_latents(VideoVae& model, const Tensors& clips);

}  // namespace rivulet
