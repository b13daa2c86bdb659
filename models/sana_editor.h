// SANA-Streaming as published: pixels through the causal autoencoder, the streaming transformer chunk by
// chunk, and back to pixels (dit.md 6, vae_text.md 3).
#pragma once

#include "models/flow.h"
#include "models/ltx2_vae/vae_stream.h"
#include "models/sana_streaming/dit_stream.h"

namespace rivulet {

// The weights, for any number of streams. Their config is the published one but in tests.
struct SanaWeights {
  FusedDit dit;
  PackedVae vae;
  std::string notes;  // what the user should know of these files; may be empty

  SanaWeights(const DitConfig& dit_config, const VideoVaeConfig& vae_config, DType dtype, Device device)
      : dit(dit_config, dtype, device), vae(vae_config, dtype, device) {}
  // Reads what a models folder has (models/released.h): the transformer, and the causal autoencoder or, made
  // causal by remapping, LTX-2's own. cached_chunks and sink of `config` may differ from the published ones.
  static SanaWeights load(const std::string& models, const DitConfig& config, DType dtype, Device device);
};

// Fills a packed autoencoder from a file under either naming scheme. remap: its decoder sees both sides in
// time and is made causal.
void load_vae(PackedVae& into, const std::string& path, bool remap);

struct SanaOptions {
  int64_t height = 704, width = 1280;  // of the frames, multiples of 32
  int64_t first_latents = 5;           // of the first chunk; the model was trained with 5
  std::vector<double> steps = default_steps(4);
  // The last denoising pass writes the memory, instead of one more pass on the clean latents.
  bool efficient_cache = false;
  uint64_t seed = 0;
};

// Seconds that one chunk took, stage by stage, as the host saw them with the device waited for.
struct SanaTimes {
  double encode = 0, denoise = 0, cache = 0, decode = 0;
  double sum() const { return encode + denoise + cache + decode; }
};

class SanaEditor {
 public:
  // `weights` must outlive the editor.
  SanaEditor(const SanaWeights& weights, const SanaOptions& options);

  // rows [1, L, caption channels] and mask u8 [1, L], as models/text_encoder.h gives them. May change between
  // chunks.
  void set_text(const Tensor& rows, const Tensor& mask) { stream_.set_text(rows, mask); }
  // Frames of the next step: 33 first, then 24 (1 + 4 * 8 and 3 * 8).
  int64_t next_frames() const;
  // u8 [next_frames(), H, W, 3] to the same shape. Throws when the network gives values that are not finite.
  Tensor step(const Tensor& frames);
  int64_t chunks() const { return stream_.chunks(); }
  const std::vector<SanaTimes>& times() const { return times_; }  // of every chunk so far

 private:
  Tensor denoise(const Tensor& source, SanaTimes& times);
  const SanaWeights& weights_;
  SanaOptions options_;
  DitStream stream_;
  VaeStream vae_;
  Rng rng_;
  std::vector<SanaTimes> times_;
};

}  // namespace rivulet
