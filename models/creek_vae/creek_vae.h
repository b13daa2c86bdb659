// creek: our own small video autoencoder, of the same blocks as LTX-2's (models/ltx2_vae) with fewer and
// narrower layers. A model folder holds config.json and weights.safetensors.
#pragma once

#include "models/ltx2_vae/vae.h"

namespace rivulet {

// In JSON: {"name": "creek", "latent_channels": 32, "patch": 4, "border": "replicate", "decoder_causal":
// true,
//   "encoder": {"width": 64, "mid_layers": 1, "stages": [{"layers": 2, "stride": [2, 2, 2], "width": 128}]},
//   "decoder": {"width": 128, "mid_layers": 1, "stages": [{"layers": 2, "stride": [2, 2, 2], "width": 64}]}}
// Strides are those of time, height and width.
struct CreekVaeConfig {
  std::string name;
  VideoVaeConfig vae;
};
CreekVaeConfig read_creek_vae_config(Fields fields);
Json to_json(const CreekVaeConfig& config);

struct CreekVae {
  CreekVaeConfig config;
  VideoVae vae;

  explicit CreekVae(const CreekVaeConfig& c, Device device = Device::cpu) : config(c), vae(c.vae, device) {}
  // Ready for inference: its weights lie as the convolutions read them.
  static CreekVae load(const std::string& dir, Device device = Device::cpu);
  void save(const std::string& dir, DType dtype = DType::f32);
};

}  // namespace rivulet
