// The flow that models here learn: x_sigma = (1 - sigma) x0 + sigma noise, velocity v = noise - x0, sampled
// from sigma = 1 down to 0. The network is told t = 1000 sigma (training.md 0).
#pragma once

#include <functional>

#include "tensor/random.h"

namespace rivulet {

// shift_k(u) = k u / (1 + (k - 1) u): moves noise levels towards 1 for k > 1.
double shift_level(double u, double k);

// The level of the distillation table nearest to t: entries shift_k(1 - j/1000), j = 0..999. It never reaches
// 0: t = 0 gives 0.00794 at shift 8 (training.md 3.1).
double table_level(double t, double shift = 8);
// Levels [B], or [B, T] with one per frame, shaped to broadcast over latents [B, C, T, h, w].
Tensor over_latents(const Tensor& levels);

struct SampleOptions {
  std::vector<double> steps = {1000, 961, 893, 743};  // t of each network call, falling
  // false: deterministic Euler on sigma = t / 1000, as released. true: every next input is the predicted x0
  // with fresh noise at the table level, as in training rollouts.
  bool renoise = false;
};

// The step list of the release for 4 and 2 steps, otherwise evenly spaced levels shifted by 8.
std::vector<double> default_steps(int64_t count);
// Throws unless the list is not empty, falls and stays in (0, 1000].
void check_steps(const std::vector<double>& steps);

// v(x, t, sigma): the velocity at level sigma when told t.
using Velocity = std::function<Tensor(const Tensor& x, double t, double sigma)>;
// From noise to x0. rng gives the fresh noise of `renoise` and is not touched otherwise.
Tensor sample(const Velocity& velocity, const Tensor& noise, const SampleOptions& options, Rng& rng);

// Levels from 1 down to 0 for many steps: u falls evenly from 1 to 0 in `count` steps, sigma = shift_k(u).
// With `through` (t of a few-step sampler, the first being 1000) every one of those levels is hit: the steps
// are shared out among the gaps between them, at least one each.
std::vector<double> solver_levels(int64_t count, double shift = 8, const std::vector<double>& through = {});
// The second-order multistep solver of the bidirectional model (DPM-Solver++ 2M, Lu et al. 2022, with
// alpha = 1 - sigma): deterministic; the first and the last step are of first order. `visit` sees the state
// at every level, the noise and the result included.
Tensor sample_multistep(const Velocity& velocity, const Tensor& noise, const std::vector<double>& levels,
                        const std::function<void(size_t level, const Tensor& x)>& visit = {});

}  // namespace rivulet
