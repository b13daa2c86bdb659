// What the training commands read of a config's "data" and "model".
#pragma once

#include <memory>

#include "models/edit_model.h"
#include "train/config.h"
#include "train/shape_edit.h"

namespace rivulet {

// {"footage": FILE, "mix": {...}, "sizes": ["256x144", ...]}. Batch k is rendered at size k of the list,
// round and round; without a list at the config's clip size.
struct RenderedData {
  ShapeEdit renderer;
  std::vector<ClipSize> sizes;
  const ClipSize& size_of_batch(int64_t k) const { return sizes[size_t(k) % sizes.size()]; }
};
RenderedData read_rendered_data(Fields fields, const TrainConfig& config);

// The vocabulary may be left out of a training config: it is then everything that the renderer can say.
EditModelConfig trained_model_config(const TrainConfig& config, const std::string& source);

// Indices of samples that are looked at; training never reaches them.
inline constexpr int64_t kShownSamples = int64_t(1) << 40;

}  // namespace rivulet
