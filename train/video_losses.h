// What a video autoencoder is trained by. Videos are [B, T, H, W, 3]; every loss is a scalar, differentiable
// in its first argument (and where nothing else is said in both).
//
//   haar_loss        mean |LH|, |HL|, |HH| of d = a - b: with p q over r s a block of 2x2 pixels,
//                    LH = (p - q + r - s) / 2,  HL = (p + q - r - s) / 2,  HH = (p - q - r + s) / 2
//   laplacian_loss   sum over levels l of mean |d_l - up(d_(l+1))|,  d_0 = d, d_(l+1) = d_l at half the size;
//                    of the last level, mean |d_l|
//   kl_loss          mean of (mu^2 + e^v - 1 - v) / 2: how far N(mu, e^v) is from N(0, 1)
//   feature_loss     mean over layers of mean (s - t)^2 / mean t^2; no gradient to t
#pragma once

#include "tensor/tensor.h"

namespace rivulet {

// H and W even.
Tensor haar_loss(const Tensor& a, const Tensor& b);
// Stops early where a side becomes odd.
Tensor laplacian_loss(const Tensor& a, const Tensor& b, int levels = 3);
// mu [..., C], log_variance [..., 1] or [..., C].
Tensor kl_loss(const Tensor& mu, const Tensor& log_variance);
Tensor feature_loss(const Tensors& student, const Tensors& teacher);

}  // namespace rivulet
