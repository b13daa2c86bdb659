// Endless edited pairs with exact targets, masks and instructions (training specification, section 9.1):
// real footage and made-up scenes, edited by looks, by colour, by object, or not at all.
#pragma once

#include <memory>

#include "nn/config.h"
#include "train/footage.h"
#include "train/instructions.h"

namespace rivulet {

struct ShapeEditConfig {
  // How often each family is drawn; the weights need not add up to 1.
  double look = 0.45, recolour = 0.35, keep = 0.20, object = 0, remove = 0, add = 0;
  // Names of the edits drawn within a family, all equally often; name one twice to see it twice as often.
  std::vector<std::string> looks = {"night", "sepia", "sketch", "black_and_white", "sunset", "negative"};
  std::vector<std::string> recolours;  // empty: every pair of colours
  double real = 0.85;                  // share of samples over real footage, when there is some
  double coloured = 0.85;              // share of recolour samples that surely hold the colour
  double jitter = 0.35;                // share of real backgrounds whose hues are turned at random
  int64_t seed = 0;

  // Reads and validates a JSON object; every field is optional.
  static ShapeEditConfig read(Fields fields);
};

struct ClipSize {
  int64_t frames, height, width;
};

struct Sample {
  Tensor source, target;  // f32 [F, H, W, 3] in [0, 1]
  Tensor mask;            // f32 [F, H, W]; source and target are equal where it is 0
  std::string instruction, inverse_instruction;
  Edit edit;
};

class ShapeEdit {
 public:
  explicit ShapeEdit(ShapeEditConfig config, std::shared_ptr<const Footage> footage = nullptr);
  // A pure function of the seed and the index: samples may be made in any order, on any thread.
  Sample sample(int64_t index, const ClipSize& size) const;
  const ShapeEditConfig& config() const { return config_; }

 private:
  Edit draw_edit(Rng& rng) const;
  Tensor background(Rng& rng, const ClipSize& size, const Edit& edit, bool coloured) const;

  ShapeEditConfig config_;
  std::vector<Edit> recolours_;
  std::shared_ptr<const Footage> footage_;
};

}  // namespace rivulet
