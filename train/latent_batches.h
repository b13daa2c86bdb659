// Where the stages of training get their clips: examples made by number on worker threads, taken to the
// latent space of the network in batches.
#pragma once

#include <memory>

#include "models/ltx2_vae/vae.h"
#include "models/patch_codec.h"
#include "train/clips.h"
#include "train/prefetch.h"

namespace rivulet {

// An edited pair, or a long source, which has no target. Frames f32 [F, H, W, 3] in [0, 1]; in the identity
// space they are latents [C, T, h, w] instead.
struct Example {
  Tensor source, target;
  Tensor mask;  // f32 [F, H, W]: how much the edit concerns each pixel; may be undefined
  std::string instruction, reverse_instruction;
};
// Must depend on the index alone; called on several threads at once.
using Examples = std::function<Example(int64_t index)>;

// Between frames [B, F, H, W, 3] in [0, 1] on the CPU and latents [B, C, T, h, w] on the network's device.
struct LatentSpace {
  std::function<Tensor(const Tensor& frames)> encode;
  std::function<Tensor(const Tensor& latents)> decode;
  LastPicture last_picture;
};
// Examples that are latents already.
LatentSpace identity_space(Device device = Device::cpu);
LatentSpace patch_space(const PatchCodec& codec, Device device = Device::cpu);
// Both must outlive what is returned. Long clips are encoded in pieces, so that memory does not grow with
// them.
LatentSpace vae_space(const VideoVae& vae);

struct LatentBatch {
  Tensor source, target;  // [B, C, T, h, w]; target is undefined for long sources
  std::vector<std::string> instructions, reverse_instructions;
};

class LatentBatches {
 public:
  LatentBatches(Examples examples, LatentSpace space, int64_t batch, int workers = 1);
  // Examples index * batch to (index + 1) * batch - 1. Quick when called in order.
  LatentBatch get(int64_t index);
  const LatentSpace& space() const { return space_; }
  int64_t batch() const { return batch_; }

 private:
  Examples examples_;
  LatentSpace space_;
  int64_t batch_;
  int workers_;
  int64_t next_ = -1;  // batch that the prefetcher stands at
  std::unique_ptr<Prefetch<Example>> ahead_;
};

}  // namespace rivulet
