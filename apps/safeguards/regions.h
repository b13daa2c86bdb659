// How much of an edit reaches the viewer: blending with the source, and regions where the source stays.
#pragma once

#include "tensor/tensor.h"

namespace rivulet {

// A mask image (white where the source must stay) at the size of the frames: u8 [H, W], 255 for white.
Tensor region_mask(const Tensor& image, int64_t height, int64_t width);

// source + strength * (1 - mask) * (edit - source), rounded; u8 [F, H, W, 3]. An undefined mask protects
// nothing.
Tensor blend(const Tensor& source, const Tensor& edit, double strength, const Tensor& mask);

}  // namespace rivulet
