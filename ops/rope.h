// Rotary position embedding in three dimensions (frame, row, column).
//
// Of a head's D channels the last 2*floor(D/6) turn with the column, as many before them with the row, and
// the first D - 4*floor(D/6) with the frame. Within an axis of d channels pair i turns by position *
// 10000^(-2i/d). Pairs are interleaved, channels (2j, 2j + 1) = (a, b):   a' = a cos - b sin,   b' = a sin +
// b cos. The gradient turns back by the same angle. Saves only the tables.
#pragma once

#include <utility>

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// cos and sin, each [T*H*W, D/2], of tokens in frame-major, then row, then column order. first_frame is
// the absolute index of the first frame, so that keys of different chunks fit together. Angles in f64.
std::pair<Tensor, Tensor> rope_table(int64_t first_frame, int64_t frames, int64_t height, int64_t width,
                                     int64_t head_dim, DType dtype = DType::f32);

// x [B, N, H, D] of any strides -> the same shape, dense. cos and sin [N, D/2]; not differentiated.
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin);

// cos and sin in f32 (f64 for f64 x): an angle is not rounded to a half.
KERNELS(void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse, Tensor& y);)

const OpCase& rope_case();

}  // namespace rivulet
