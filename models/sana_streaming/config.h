// Sizes of a SANA-Streaming transformer (dit.md 1). The defaults are the released 2B streaming model.
#pragma once

#include "nn/config.h"

namespace rivulet {

struct DitConfig {
  std::string variant = "streaming";  // or "bidirectional": q and k of the softmax blocks stored without taps
  int64_t depth = 20;
  int64_t width = 2240;  // C
  int64_t heads = 20;    // nH; head dim is width / heads, even
  std::vector<int64_t> softmax_blocks = {3, 7, 11, 15, 19};
  int64_t mlp_ratio = 3;
  int64_t latent_channels = 128;  // of the noisy target and of the source each
  int64_t caption_channels = 2304;
  // Streaming: frames of a steady chunk, kept chunks before the current one (negative: all), sink chunk.
  int64_t chunk_frames = 3;
  int64_t cached_chunks = 2;
  bool sink = true;

  bool is_softmax(int64_t block) const;
};

// Reads and validates the fields above from a JSON object; unknown fields are the caller's to refuse.
DitConfig read_dit_config(Fields& fields);
Json to_json(const DitConfig& config);

}  // namespace rivulet
