// What a search decides on: units, each a layer of a block (and, when asked for, one denoising step), and the
// choices of each. The bridge between assignments of option numbers (problem.h) and policies
// (nn/precision.h).
#pragma once

#include "nn/precision.h"
#include "quant/problem.h"

namespace rivulet {

struct PolicyUnit {
  int64_t block = 0;
  Layer layer = Layer::sa_q;
  double t_low = 0, t_high = 1000;  // the timesteps it covers
  std::vector<Choice> choices;      // the first one is bf16

  bool all_t() const { return t_low <= 0 && t_high >= 1000; }
  std::string name() const;  // "b3.ffn_in", "b3.ffn_in.t961"
};

class PolicySpace {
 public:
  // All layers of `layers` in all blocks; scores where a block has a softmax, with bf16 and fp8 alone.
  // `times`, when given, splits every unit but ca_kv by the t of each pass (0: the one that writes the
  // memory).
  PolicySpace(int64_t depth, const std::vector<int64_t>& softmax_blocks, const std::vector<Layer>& layers,
              const std::vector<Choice>& choices, const std::vector<double>& times = {});

  const std::vector<PolicyUnit>& units() const { return units_; }
  size_t size() const { return units_.size(); }
  // Options that are not bf16, over all units: the rows of the Gram matrix, in order.
  int64_t rows() const;

  Policy policy(const Assignment& assignment, const std::string& name) const;
  // One unit in one choice, the rest as the model is.
  Policy single(size_t unit, int option) const;
  // What `policy` chooses in every unit. Throws when it chooses what a unit does not offer.
  Assignment assignment(const Policy& policy) const;
  // Every unit takes `choice` where it offers it, else bf16.
  Assignment uniform(const Choice& choice) const;

 private:
  std::vector<PolicyUnit> units_;
};

// The policy of the SANA-Streaming paper (dit.md 9, table 4), its groups of blocks 0-5 and 6-19 of 20 scaled
// to `depth`: NVFP4 in sa_q, sa_k, ca_o, ffn_t everywhere and ffn_in, ffn_out in the later blocks; FP8 in
// sa_v, sa_o, ca_q, ca_kv and the early ffn_in, ffn_out; the rest as the model is.
Policy paper_policy(int64_t depth);

}  // namespace rivulet
