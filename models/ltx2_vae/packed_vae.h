// A video autoencoder laid out for inference (models/ltx2_vae/vae_stream.h): weights of one dtype in the order
// that the convolutions read, their channels reordered so that blocks of pixels move into channels and back in
// whole runs. The order of a level's channels does not matter to what lies between its convolutions.
#pragma once

#include "models/ltx2_vae/vae.h"

namespace rivulet {

struct PackedConv {
  Tensor w, bias;  // [N, 3, 3, 3, C] and f32 [N]
  explicit operator bool() const { return w.defined(); }
};

// Residual blocks at one size, and the sampler that leads to the next.
struct PackedStage {
  int64_t width = 0;
  std::vector<PackedConv> convs;  // two of each block
  PackedConv sampler;             // none behind the last stage
  BlockSize stride{1, 1, 1};
  Tensor position;  // i32 [width]: where each channel lies
};

struct PackedHalf {
  PackedConv conv_in, conv_out;
  std::vector<PackedStage> stages;
  Border border = Border::zeros;
  bool down = false;  // samplers: of the encoder
};

class PackedVae {
 public:
  // Unspecified weights. Every stage must have a residual block.
  PackedVae(const VideoVaeConfig& config, DType dtype, Device device);
  // Takes the values of a model of the same config, which may live elsewhere in another dtype.
  void copy_from(const VideoVae& vae);
  // Random weights of a stable network, made where they live.
  void fill_random(Rng& rng);

  const VideoVaeConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  Device device() const { return latents_mean.device(); }
  int64_t weight_bytes() const;

  PackedHalf encoder, decoder;
  Tensor latents_mean, latents_std;  // f32 [C]

 private:
  VideoVaeConfig config_;
  DType dtype_;
};

}  // namespace rivulet
