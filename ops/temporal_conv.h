// Full convolution over three frames: every output channel of a token reads all channels of the same
// place in the previous, the own and the next frame.
//
//   y_t = W0 r_{t-1} + W1 r_t + W2 r_{t+1} [+ r_t];   r_{-1} = left context, r_T = 0
//   dr_t = W0' dy_{t+1} + W1' dy_t + W2' dy_{t-1} [+ dy_t],  dleft = W0' dy_0,  dW_k = sum over t of dy_t r_{t+k-1}'
//
// Saves r, w and the left context.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// r [B, T, S, C], w [Co, C, 3, 1] (the released layout) -> [B, T, S, Co]. left_context [B, S, C] is the last
// frame of the chunk before; undefined = zeros. With `residual` (Co = C) r itself is added.
Tensor temporal_conv3(const Tensor& r, const Tensor& w, const Tensor& left_context = {},
                      bool residual = false);

// taps [3, Co, C]. An undefined left stands for zeros; then dleft is undefined and left alone.
KERNELS(void temporal_conv3(const Tensor& r, const Tensor& taps, const Tensor& left, bool residual,
                            Tensor& y);
        void temporal_conv3_backward(const Tensor& dy, const Tensor& r, const Tensor& taps,
                                     const Tensor& left, bool residual, Tensor& dr, Tensor& dtaps,
                                     Tensor& dleft);)

const OpCase& temporal_conv3_case();
const OpCase& temporal_conv3_residual_case();

}  // namespace rivulet
