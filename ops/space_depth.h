// Moving blocks of pixels into channels and back, channels last. With the factors (st, sh, sw):
//
//   space_to_depth   y[t, h, w, ((c st + dt) sh + dh) sw + dw] = x[t st + dt, h sh + dh, w sw + dw, c]
//   depth_to_space   the inverse
//
// Each is the other's gradient; nothing is saved.
#pragma once

#include <array>

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

using BlockSize = std::array<int64_t, 3>;  // frames, rows, columns

// x [B, T, H, W, C], T, H and W multiples of the block -> [B, T/st, H/sh, W/sw, C st sh sw].
Tensor space_to_depth(const Tensor& x, const BlockSize& block);
// x [B, T, H, W, C], C a multiple of st sh sw -> [B, T st, H sh, W sw, C / (st sh sw)].
Tensor depth_to_space(const Tensor& x, const BlockSize& block);

// Dense tensors: `space` [B, T st, H sh, W sw, C] and `depth` [B, T, H, W, C st sh sw] of one floating dtype;
// to_space says which of the two is written.
KERNELS(void move_blocks(const Tensor& space, const Tensor& depth, const BlockSize& block, bool to_space);)

const OpCase& space_to_depth_case();
const OpCase& depth_to_space_case();

}  // namespace rivulet
