// Distribution matching between a few-step student and its many-step teacher (training.md 3.4 and 3.5; Yin et
// al. 2024): on noised samples of the student, a frozen network knows the teacher's score, a second one
// follows the student's own. Functions from tensors to scalars; T frames of a clip carry a mask.
#pragma once

#include "train/edit_net.h"

namespace rivulet {

// The level at which both scores look: r uniform in 0..999, t = 1000 shift_k(r / 1000), held in [low, high].
struct ScoreOptions {
  double shift = 8, low = 20, high = 980;
  double guidance = 3;  // w in cond + w (cond - uncond): w + 1 in the convention uncond + w' (cond - uncond)
};
struct ScoreNoise {
  Tensor sigma, t;  // [B], the same for all frames of a clip; sigma is the table's entry for t
  Tensor eps;       // [B, C, T, h, w]
};
ScoreNoise draw_score_noise(const Tensor& latents, const ScoreOptions& options, Rng& rng);

// cond + w (cond - uncond)
Tensor guided(const Tensor& cond, const Tensor& uncond, double w);

// g = (fake - real) / N, where N of each sample is the mean of |x - real| over all its elements, those
// outside of any mask included, at least 1e-6. A sample that is not finite gets 0.
Tensor dmd_direction(const Tensor& x, const Tensor& fake, const Tensor& real);

// 1/2 mean over mask = 1 of (x - stopgrad(x - g))^2, so that dx = g / #elements there, exactly; and 0
// elsewhere. mask: f32 [T] of 0 and 1.
Tensor dmd_loss(const Tensor& x, const Tensor& g, const Tensor& mask);

// What the scores are asked with: one set of contexts per network, since each has its own text encoder.
struct ScoreTexts {
  const TextContext &real, &real_negative, &fake;
};
// x is on the tape, everything else is not; no gradient reaches a score.
Tensor dmd_loss(const EditNet& real, const EditNet& fake, const ScoreTexts& texts, const Tensor& x,
                const Tensor& source, const Tensor& mask, const ScoreNoise& noise, double guidance);

// Flow matching of the fake score on samples x of the student: mean over mask = 1 of (v - (eps - x))^2.
Tensor critic_loss(const EditNet& fake, const TextContext& text, const Tensor& x, const Tensor& source,
                   const Tensor& mask, const ScoreNoise& noise);

}  // namespace rivulet
