// The golden file of the text encoder's decoder stack (see models/golden.h, which calls these).
#pragma once

#include "models/golden.h"

namespace rivulet {

bool is_gemma2_golden(const SafeTensors& file);
// One row with the cap on the attention logits, one without.
std::vector<GoldenRow> run_gemma2_golden(const SafeTensors& file, Device device, DType dtype);

}  // namespace rivulet
