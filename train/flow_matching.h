// Flow matching on straight paths between data x0 and noise eps: noise level sigma in [0, 1],
//   x_sigma = (1 - sigma) x0 + sigma eps,   velocity target v* = eps - x0,
//   loss = mean over all elements of (v - v*)^2.
#pragma once

#include "tensor/random.h"

namespace rivulet {

struct FlowOptions {
  double shift = 3;                      // of the noise levels in training
  double logit_mean = 0, logit_std = 1;  // of the logit-normal base level
  double text_dropout = 0.1;             // chance that a sample is trained on the empty prompt
  // Weight of the seams of a chunked clip: the mean square change of v - v* from the last frame of a chunk to
  // the first of the next, counted as one frame each. Chunks have noise of their own, so it rewards errors
  // that do not depend on it.
  double seam = 0;
};

struct NoiseLevel {
  double sigma;
  int64_t t;  // floor(1000 sigma), what the network is told
};

// Level i of 1000: sigma = shift_level(i / 1000, shift), see models/flow.h.
NoiseLevel level_of_index(int64_t i, double shift);
// n ~ N(mean, std^2), i = floor(1000 sigmoid(n)), shifted. One level serves a whole clip.
NoiseLevel draw_level(Rng& rng, double shift, double mean = 0, double std = 1);
// True when this sample's text is to be replaced by the empty prompt. Always uses one draw.
bool draw_text_dropout(Rng& rng, double p);

// x0, eps: [B, ...] of one shape; sigma: one per sample. Differentiable in x0 and eps.
Tensor add_noise(const Tensor& x0, const Tensor& eps, const std::vector<double>& sigma);
// v, eps, x0 of one shape. Returns a scalar.
Tensor flow_matching_loss(const Tensor& v, const Tensor& eps, const Tensor& x0);

}  // namespace rivulet
