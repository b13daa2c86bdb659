// The bidirectional SANA model on a short clip: everything at once, many steps, with guidance by a negative
// prompt (training.md 1.3). The autoencoder decodes with frames on both sides.
#pragma once

#include "models/dpm_solver.h"
#include "models/ltx2_vae/vae.h"
#include "models/sana_streaming/dit.h"
#include "models/text_encoder.h"

namespace rivulet {

struct SanaClipEditor {
  Dit dit;
  VideoVae vae;

  // Published sizes, out of a models folder; the transformer in `dtype`.
  static SanaClipEditor load(const std::string& models, DType dtype, Device device);

  // u8 [1 + 8 k, H, W, 3] to the same shape; H and W multiples of 32. `negative` is not read at guidance 1.
  Tensor edit(const Tensor& frames, const TextEmbedding& prompt, const TextEmbedding& negative,
              const ClipSampling& sampling, uint64_t seed) const;
};

}  // namespace rivulet
