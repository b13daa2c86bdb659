#include "train/dmd.h"

#include <algorithm>
#include <cmath>

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/optim.h"
#include "ops/reduce.h"

namespace rivulet {
namespace {

constexpr double kSmallestNormaliser = 1e-6;

Tensor over_frames(const Tensor& mask, const Tensor& x) {
  check(x.dims() == 5 && mask.dims() == 1 && mask.dim(0) == x.dim(2), "dmd: the mask has shape ",
        mask.shape(), " for latents ", x.shape());
  return mask.reshape({1, 1, -1, 1, 1}).to(x.device());
}

}  // namespace

ScoreNoise draw_score_noise(const Tensor& latents, const ScoreOptions& o, Rng& rng) {
  std::vector<double> sigma, told;
  for (int64_t b = 0; b < latents.dim(0); ++b) {
    const double level = shift_level(double(rng.below(1000)) / 1000, o.shift);
    told.push_back(std::clamp(1000 * level, o.low, o.high));
    sigma.push_back(table_level(told.back(), o.shift));
  }
  const Shape per_sample{latents.dim(0)};
  return {Tensor::of(sigma, per_sample), Tensor::of(told, per_sample),
          randn(latents.shape(), rng, DType::f32, latents.device())};
}

Tensor guided(const Tensor& cond, const Tensor& uncond, double w) { return cond + (cond - uncond) * w; }

Tensor dmd_direction(const Tensor& x, const Tensor& fake, const Tensor& real) {
  const NoGrad off;
  const Tensor smallest = full(Shape{}, kSmallestNormaliser, DType::f32, x.device());
  const Tensor size = maximum(mean(abs(x - real), {1, 2, 3, 4}, true), smallest);
  const Tensor g = (fake - real) / size;
  for (int64_t b = 0; b < g.dim(0); ++b)
    if (const Tensor sample = g.select(0, b); !std::isfinite(sum_of_squares(sample))) sample.fill(0);
  return g;
}

Tensor dmd_loss(const Tensor& x, const Tensor& g, const Tensor& mask) {
  check(g.shape() == x.shape(), "dmd: x has shape ", x.shape(), ", g ", g.shape());
  const Tensor m = over_frames(mask, x), kept = g.detach() * m;
  const double count = sum(m).item() * double(x.numel()) / double(x.dim(2));
  check(count > 0, "dmd: the mask leaves no frame");
  const Tensor loss = full(Shape{}, 0.5 * sum_of_squares(kept) / count, DType::f32, x.device());
  return record("dmd_loss", loss, {x},
                [kept, count](const Tensor& dy) -> Tensors { return {kept * dy * (1 / count)}; });
}

Tensor dmd_loss(const EditNet& real, const EditNet& fake, const ScoreTexts& texts, const Tensor& x,
                const Tensor& source, const Tensor& mask, const ScoreNoise& n, double guidance) {
  Tensor g;
  {
    const NoGrad off;
    const Tensor given = x.detach(), y = noised(given, n.eps, n.sigma);
    const auto ask = [&](const EditNet& net, const TextContext& text) {
      return clean_of(y, net({y, source, n.sigma, n.t, text}), n.sigma);
    };
    const Tensor fakes = ask(fake, texts.fake), cond = ask(real, texts.real);
    g = dmd_direction(given, fakes, guided(cond, ask(real, texts.real_negative), guidance));
  }
  return dmd_loss(x, g, mask);
}

Tensor critic_loss(const EditNet& fake, const TextContext& text, const Tensor& x, const Tensor& source,
                   const Tensor& mask, const ScoreNoise& n) {
  const Tensor given = x.detach(), y = noised(given, n.eps, n.sigma);
  const Tensor v = fake({y, source, n.sigma, n.t, text});
  return masked_mse(v, n.eps - given, over_frames(mask, x));
}

}  // namespace rivulet
