// The transformer's weights as published (dit.md 7).
#pragma once

#include <map>

#include "models/sana_streaming/dit.h"
#include "tensor/weight_file.h"

namespace rivulet {

// Names and shapes of the file of a model of this config, and those that it may hold besides: buffers that
// inference does not read.
NamedShapes dit_shapes(const DitConfig& config);
NamedShapes unread_dit_shapes(const DitConfig& config);

// The file's tensors without what training put in front of their names: outside of a "state_dict", a leading
// "model." and then a leading "module.".
std::map<std::string, Tensor> dit_tensors(const WeightFile& file);

// Copies the weights into `dit`, which may be of any dtype and device, and whose softmax q and k may lack the
// taps that are never read (FusedDit::dit). Throws one Error that lists everything that does not fit. The
// file is read once, and no more of it than one tensor is held.
void load_dit(Dit& dit, const WeightFile& file);

// How random weights are drawn so that the network is stable: linear layers keep the size of what they read,
// gates and decays are in their working range.
struct RandomWeight {
  double mean = 0, spread = 0;
};
RandomWeight random_dit_weight(const std::string& name, const Shape& shape, int64_t depth);

}  // namespace rivulet
