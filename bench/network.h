// The three pieces of work that are timed on the bundled network, models/brook, with inputs that depend on
// nothing but the code. Each can be saved, inputs, weights and results, for a program that repeats it.
#pragma once

#include "models/editor.h"
#include "train/optimizer.h"

namespace rivulet::bench {

// What the rows need to know before any weight is read.
EditModelConfig brook_config();
// models/brook of the source tree; random weights of the same sizes where that has none.
EditModel brook();

// Operations of one network call on frames of h x w tokens: every linear layer and convolution, attention
// over `keys` keys, the delta net; normalisations and activations are left out.
double dit_flops(const DitConfig& config, int64_t batch, int64_t frames, int64_t h, int64_t w, int64_t keys,
                 int64_t text_tokens);

// One network call at 256x144 with a full window behind it.
class Forward {
 public:
  Forward();
  Tensor run() const;
  void save(const std::string& path);

 private:
  EditModel model_;
  Tensor x_, t_;
  Prompt prompt_;
  StreamState past_;
};

// One chunk of a running stream at 256x144, u8 frames to u8 frames: four denoising passes and one that
// writes the memory.
class Chunk {
 public:
  Chunk();
  Tensor run() const;
  void save(const std::string& path);

 private:
  Editor editor_;
  Tensor frames_;
  Prompt prompt_;
  EditState state_;
};

// One optimizer step on four first chunks of 128x96: instruction encoder, network, loss, backward, AdamW.
class TrainingStep {
 public:
  static constexpr int64_t kBatch = 4;
  TrainingStep();
  // The loss before the step.
  double run();
  void save(const std::string& path);

 private:
  EditModel model_;
  NamedTensors params_;
  AdamW optimizer_;
  SourceLatents source_;
  Tensor target_, noise_;
  std::vector<std::string> texts_;
  std::vector<double> levels_;
};

}  // namespace rivulet::bench
