// The decay of a gated delta net's frames, from the projection of their tokens (ops/gdn.h):
//
//   decay[t, h] = exp(-exp(A_log[h]) softplus(x[t, h])),   x = mean over the frame's tokens of logits +
//   dt_bias
//
// With p = -d decay * decay * exp(A_log):   dx = p sigmoid(x), every token's logit gets dx / S,
// d dt_bias = sum of dx,   dA_log = sum of p softplus(x).   Saves x and the decay.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// logits [B, T, S, H] of any strides, dt_bias and A_log [H], all of one dtype -> [B, T, H] in f32 (f64 for
// f64): rounded to bf16, a decay near 1 would forget in coarse steps.
Tensor gdn_decay(const Tensor& logits, const Tensor& dt_bias, const Tensor& A_log);

// x and decay [B, T, H].
KERNELS(void gdn_decay(const Tensor& logits, const Tensor& dt_bias, const Tensor& A_log, Tensor& x,
                       Tensor& decay);)

const OpCase& gdn_decay_case();

}  // namespace rivulet
