// The sampler of the bidirectional model: DPM-Solver++ (Lu et al. 2022, eq. 16) with two steps of history,
// for the flow x_s = (1 - s) x0 + s noise. With half the log of the signal-to-noise ratio l(s) = log((1 - s)
// / s), and the clean picture that the network sees at each level, m = x - s v:
//
//   x' = a x + (1 - a) (m + (m - m_before) h / (2 h_before)),   a = s' / s,  h = l(s') - l(s),
//
// without the term in brackets for the first step, and x' = m for the last one, which goes to s' = 0. One
// network call a step; the error falls with the square of their number.
#pragma once

#include "models/flow.h"

namespace rivulet {

struct ClipSampling {
  int64_t steps = 50;
  double shift = 8;     // of the levels
  double guidance = 6;  // 1: the negative prompt is not asked
};

// Levels of the steps and 0 behind them: shift_level(0.999 (1 - i / steps), shift), i = 0 .. steps.
std::vector<double> clip_levels(int64_t steps, double shift);

// From noise to x0 along falling levels that end in 0. The network is told t = 1000 s.
Tensor sample_dpm(const Velocity& velocity, const Tensor& noise, const std::vector<double>& levels);

// negative + scale (positive - negative); at scale 1 the negative one is never called.
Velocity guided(Velocity positive, Velocity negative, double scale);

}  // namespace rivulet
