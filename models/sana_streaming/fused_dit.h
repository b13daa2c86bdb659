// A transformer laid out for inference: the same parameters, of one dtype, with the matrices that read the
// same input stored as one. The parameters of `dit` are views of that storage, so nothing is kept twice.
#pragma once

#include "models/sana_streaming/dit.h"

namespace rivulet {

struct FusedBlock {
  Tensor qkvg, qkvg_bias;    // [4C, C] and [4C]: q, k, v and output gate of the self-attention
  Tensor rates, rates_bias;  // [2 nH, C] and [2 nH]: write strength and decay of a delta-net block
};

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
