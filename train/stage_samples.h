// What a network of the training stages does to held examples, as a picture and as a number.
#pragma once

#include "models/edit_model.h"
#include "models/flow.h"
#include "train/latent_batches.h"

namespace rivulet {

struct StageSampling {
  bool streaming = true;      // chunk by chunk with memory; otherwise the whole clip at once
  SampleOptions student;      // of each chunk
  int64_t solver_steps = 20;  // of the whole clip, by the multistep solver
  double guidance = 3;        // of the whole clip, uncond + w (cond - uncond)
};
// Edited latents of a batch, [B, C, T, h, w].
Tensor edit_latents(const EditModel& model, const Tensor& source,
                    const std::vector<std::string>& instructions, const StageSampling& options, Rng& rng);

struct StageSheet {
  Tensor pixels;  // u8 [B H, 2 W or 3 W, 3]: last frames of source, edit and, where there is one, target
  // 1 - |edit - target| / |source - target|, root mean squares over the latents of all samples whose target
  // differs: 1 is the target, 0 the untouched source. NaN without targets.
  double score;
};
StageSheet stage_sheet(const EditModel& model, const LatentSpace& space, const LatentBatch& batch,
                       const StageSampling& options, uint64_t seed);

}  // namespace rivulet
