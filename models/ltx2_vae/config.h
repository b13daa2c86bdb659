// The shape of a convolutional video autoencoder of the LTX-2 family (vae_text.md 1).
#pragma once

#include "nn/config.h"
#include "ops/conv.h"
#include "ops/space_depth.h"

namespace rivulet {

struct VideoVaeConfig {
  // Encoder: `layers` residual blocks, then a downsampler to `width`. Decoder: an upsampler to `width`, then
  // `layers` residual blocks.
  struct Stage {
    int64_t layers;
    BlockSize stride;
    int64_t width;
  };
  int64_t latent_channels = 128;
  int64_t patch = 4;  // pixels per side that are folded into channels before the first convolution
  int64_t encoder_width = 128, encoder_mid_layers = 2;
  std::vector<Stage> encoder;
  int64_t decoder_width = 1024, decoder_mid_layers = 5;
  std::vector<Stage> decoder;
  Border encoder_border = Border::zeros, decoder_border = Border::reflect;
  bool decoder_causal = false;  // the weights were made for frames on the left alone

  int64_t spatial() const;   // pixels per latent and side
  int64_t temporal() const;  // frames per latent, but for the first of a stream, which is one frame
  // Frames of T latents, and latents of `frames` frames: 1 + k temporal() frames are 1 + k latents.
  int64_t frames_of(int64_t latents) const { return latents == 0 ? 0 : (latents - 1) * temporal() + 1; }
  int64_t latents_of(int64_t frames) const { return frames == 0 ? 0 : (frames - 1) / temporal() + 1; }
};

// The released sizes: 694 M parameters to encode, 528 M to decode.
VideoVaeConfig ltx2_vae_config();
// From a released config.json (or a part of it; what is absent has the released value). `source` opens
// errors; throws on variants that are not built here, such as decoders with noise or time conditioning.
VideoVaeConfig ltx2_vae_config(const Json& json, const std::string& source);

}  // namespace rivulet
