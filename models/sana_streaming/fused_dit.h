// A transformer laid out for inference: the same parameters, of one dtype, with the matrices that read the
// same input stored as one. The parameters of `dit` are views of that storage, so nothing is kept twice.
#pragma once

#include <functional>

#include "models/sana_streaming/dit.h"
#include "models/sana_streaming/packed_layers.h"

namespace rivulet {

// The parts of what reads a block's self-attention input: q, k, v, output gate, and the rates of a delta net.
inline constexpr int64_t kParts = 5, kRates = 4;
// What a policy says of a part; the rates stay as they are.
Choice part_choice(const BlockChoices& choices, int64_t part);
// Runs [first, last) of parts that a policy keeps as one product each.
std::vector<std::pair<int64_t, int64_t>> part_runs(const BlockChoices& choices, bool with_rates);

struct Projection {
  int64_t first = 0, last = 0;  // parts
  PackedLayer layer;
  Tensor matrix;  // [rows, C] where the layer is not packed
};

struct FusedBlock {
  // [4C + R, C] and [4C + R]: q, k, v and output gate of the self-attention; then in a delta-net block the
  // write strength and the decay of every head, and zeros up to a multiple of 64 rows.
  Tensor qkvg, qkvg_bias;
  Tensor rates, rates_bias;  // [2 nH, C] and [2 nH]: those of a delta-net block
  // Under a policy, instead of qkvg and rates; and the other layers'.
  std::vector<Projection> projections;
  std::array<PackedLayer, kLayers> packed;

  const PackedLayer& at(Layer layer) const { return packed[size_t(layer)]; }
  // The projection that reads codes which the op before can make, if there is one; and whether all are such.
  const PackedLayer* codes_reader() const;
  bool reads_codes_alone() const;
  // Parts [first, last), each [..., rows of it]; the others stay undefined.
  std::array<Tensor, kParts> project(Operand& u, int64_t first = 0, int64_t last = kParts) const;
};

// What the delta net of a block makes of u [1, T, S, C] (dit.md 2) up to its output projection, out [1, T, S,
// C], and its state after these frames, without a gradient. cos and sin [T * S, D / 2]; `start` may be
// undefined. `piece` is called with a name after each part of the work but the last.
GdnResult delta_net_layer(
    const GdnAttention& gdn, const FusedBlock& fused, Operand u, const Tensor& cos, const Tensor& sin,
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

  // Keeps the weights as the policy says: those that it rounds are given up. The policy must not depend on t
  // and leaves attention itself (scores) as it is.
  void pack(const Policy& policy);
  const Policy& policy() const { return policy_; }
  // While on, activations with a static scale are rounded by their own and the static one is measured: to be
  // run over some chunks before anything else (DitStream then makes no graphs).
  void measure(bool on);
  bool measuring() const { return measuring_; }
  // Whether no static scale is still unknown.
  bool ready() const { return measured_ || measuring_ || !policy_.has_static_scales(); }
  // Of all parameters as they are kept.
  int64_t weight_bytes() const;
  // Everything as it is kept, in one safetensors file that names its policy and sizes; and back. On the CPU
  // the weights stay in the mapped file.
  void save(const std::string& path) const;
  static FusedDit load(const std::string& path, Device device);

  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  Dit dit;
  std::vector<FusedBlock> blocks;

 private:
  void fuse(Block& block);
  void pack_projections(Block& block, FusedBlock& fused, const BlockChoices& choices);
  Policy policy_;
  bool measuring_ = false, measured_ = false;
  DType dtype_;
  Device device_;
};

}  // namespace rivulet
