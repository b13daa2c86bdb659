// A network as the policy search sees it: what its layers cost, and what it makes of a clip under a policy.
#pragma once

#include <functional>

#include "quant/cost.h"
#include "quant/space.h"

namespace rivulet {

// The product of one layer over a steady chunk.
struct LayerWork {
  int64_t block = 0;
  Layer layer = Layer::sa_q;
  ProductShape shape;    // of scores: rows queries, in = C, out = 2 * keys
  double per_chunk = 1;  // times it runs in a chunk; below 1 where the result is kept for longer
  int64_t input = 0;     // layers of one number read the same activation,
  int64_t columns = 0;   // which has so many
};

struct SubjectClip {
  std::string name, instruction;
  int64_t video = 0;  // clips cut from one video share the number
  bool held_out = false;
};

// A clip's result, chunk by chunk.
struct EditedClip {
  Tensors free;    // the memory is the policy's own
  Tensors forced;  // every chunk starts from the memory that the reference had; empty unless asked for
};

struct Subject {
  std::string name;
  std::string fingerprint;  // of weights and clips: another one makes earlier results useless
  int64_t depth = 0;
  std::vector<int64_t> softmax_blocks;
  std::vector<double> times;  // t of the passes over a chunk, the last one 0: it writes the memory
  std::vector<LayerWork> layers;
  std::vector<SubjectClip> clips;
  // The result of clip `index` under a policy. The same call gives the same bits. Throws where the network
  // gives what is not finite.
  std::function<EditedClip(size_t index, const Policy& policy, bool forced)> edit;
  // How much each option but bf16 hurts by gradients alone (a diagonal Fisher score), unit after unit; empty
  // where the subject cannot tell.
  std::function<std::vector<double>(size_t index, const std::vector<PolicyUnit>& units)> fisher = {};
};

}  // namespace rivulet
