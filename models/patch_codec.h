// Fixed orthonormal patch latents: each p x p patch of a frame goes through a colour rotation (grey, and two
// colour differences) and a 2-D DCT, and becomes one latent pixel of 3 p^2 channels, ordered from low to high
// frequency. No weights; decoding is the transpose, so pixel errors equal latent errors.
#pragma once

#include "tensor/tensor.h"

namespace rivulet {

class PatchCodec {
 public:
  explicit PatchCodec(int64_t patch);
  int64_t patch() const { return patch_; }
  int64_t channels() const { return 3 * patch_ * patch_; }

  // frames [F, H, W, 3], u8 or f32 in [0, 1]; H and W multiples of the patch. Latents [1, channels, F, H/p,
  // W/p] of the pixels scaled to [-1, 1].
  Tensor encode(const Tensor& frames) const;
  // The inverse, as f32 pixels in [0, 1], not clamped: [F, H, W, 3].
  Tensor decode(const Tensor& latents) const;

 private:
  int64_t patch_;
  Tensor basis_;  // [channels, p * p * 3], orthonormal rows
};

}  // namespace rivulet
