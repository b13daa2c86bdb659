// What the products of a network cost on the device that is here.
#pragma once

#include "quant/subject.h"

namespace rivulet {

// A cost file of kind "table": for each shape of `layers` but scores the median time of the product as the
// model is (bf16 on a GPU, f32 on a CPU) and in each format of `choices` that the device multiplies by
// itself, and of making the quantised copy by a kernel of its own. Operands are random and taken in turn from
// more memory than the caches hold. Throws when the device has none of the formats.
Json measure_costs(const std::vector<LayerWork>& layers, const std::vector<Choice>& choices, Device device,
                   int64_t repetitions = 20);

}  // namespace rivulet
