// What the pieces of a streaming denoising pass must compute and move at least: the yardstick of bench-dit.
#pragma once

#include <map>
#include <string>

#include "models/sana_streaming/config.h"

namespace rivulet {

struct Cost {
  double flops = 0;       // of one pass, all blocks together
  double bytes = 0;       // every input read once, every output written once, 2 bytes an element
  bool products = false;  // matrix products: held against their ceiling, not the copy's
};

// By the names that DitStream gives its pieces. `tokens` of the chunk, T frames, `keys` of the softmax
// blocks (the chunk's own included), `text` tokens.
std::map<std::string, Cost> pass_costs(const DitConfig& config, int64_t tokens, int64_t T, int64_t keys,
                                       int64_t text);

}  // namespace rivulet
