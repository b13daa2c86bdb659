// The forward of ops/depthwise_glu.h in bf16 by tiles in shared memory.
#pragma once

#include "tensor/tensor.h"

namespace rivulet::cuda {

// False when the tensors are not of a kind it takes: bf16, 2C a multiple of 128, aligned, columns that fit.
bool depthwise_glu_tiled(const Tensor& x, const Tensor& w, const Tensor& bias, bool silu_first, Tensor& y);

}  // namespace rivulet::cuda
