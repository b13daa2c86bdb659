// Sizes of a Gemma-2 decoder, as its published config.json gives them (vae_text.md 5.2).
#pragma once

#include "nn/config.h"

namespace rivulet {

struct Gemma2Config {
  int64_t vocabulary = 256000, width = 2304, depth = 26, heads = 8, kv_heads = 4, head_dim = 256, mlp = 9216;
  double norm_eps = 1e-6, rope_theta = 10000;
  double query_scale = 256;  // logits are q.k / sqrt(query_scale)
  double soft_cap = 50;      // of the attention logits, where it is asked for
  // Keys that a query of a windowed layer sees, itself counted, and which layers are windowed.
  int64_t window = 4096;
  std::vector<bool> windowed;  // per layer; by default every second one, from the first on
};

// Reads what it needs of config.json and passes over the rest; refuses another kind of model, biases in the
// attention and another activation.
Gemma2Config read_gemma2_config(const Json& json, const std::string& source);

}  // namespace rivulet
