// A transformer laid out for inference: the same parameters, of one dtype, with the matrices that read the
// same input stored as one. The parameters of `dit` are views of that storage, so nothing is kept twice.
#pragma once

#include <functional>

#include "models/sana_streaming/dit.h"

namespace rivulet {

struct FusedBlock {
  Tensor qkvg, qkvg_bias;    // [4C, C] and [4C]: q, k, v and output gate of the self-attention
  Tensor rates, rates_bias;  // [2 nH, C] and [2 nH]: write strength and decay of a delta-net block
};

// What the delta net of a block makes of u [1, T, S, C] (dit.md 2) up to its output projection, out [1, T, S,
// C], and its state after these frames, without a gradient. cos and sin [T * S, D / 2]; `start` may be
// undefined. `piece` is called with a name after each part of the work but the last.
GdnResult delta_net_layer(
    const GdnAttention& gdn, const FusedBlock& fused, const Tensor& u, const Tensor& cos, const Tensor& sin,
    const GdnState& start, const std::function<void(const char*)>& piece = [](const char*) {});

class FusedDit {
 public:
  // Parameters with unspecified contents. Softmax q and k are stored without the taps that inference never
  // reads (dit.md 3.1), so a checkpoint comes in by copy_from. The streaming variant only.
  FusedDit(const DitConfig& config, DType dtype, Device device);
  // Takes the values of `source`, which may be of another dtype and device.
  void copy_from(Dit& source);
  // Random weights of a stable network, made where they live: linear layers keep the size of what they
  // read, gates and decays are in their working range.
  void fill_random(Rng& rng);

  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  Dit dit;
  std::vector<FusedBlock> blocks;

 private:
  void fuse(Block& block);
  DType dtype_;
  Device device_;
};

}  // namespace rivulet
