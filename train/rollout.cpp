#include "train/rollout.h"

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

// f(begin, end) for the frames of every chunk.
template <class F>
void for_chunks(const Tensor& clip, const RolloutPlan& plan, F&& f) {
  check_steps(plan.steps);
  check(plan.exit >= 0 && plan.exit < int64_t(plan.steps.size()), "rollout: step ", plan.exit, " of ",
        plan.steps.size());
  int64_t at = 0;
  for (int64_t length : plan.chunks) {
    check(length > 0 && at + length <= clip.dim(2), "rollout: a chunk of ", length, " frames at ", at,
          " of a clip of ", clip.dim(2));
    f(at, at + length);
    at += length;
  }
  check(at == clip.dim(2), "rollout: chunks of ", at, " frames in all for a clip of ", clip.dim(2));
}

Tensor noise_like(const Tensor& x, Rng& rng) { return randn(x.shape(), rng, DType::f32, x.device()); }

}  // namespace

StreamState write_memory(const EditNet& net, const Tensor& x0, const Tensor& source, const TextContext& text,
                         const StreamState& memory, double shift, Rng& rng) {
  const NoGrad off;
  const Tensor floor = levels_of(x0.dim(0), table_level(0, shift)), zero = levels_of(x0.dim(0), 0);
  StreamState next;
  net({noised(x0.detach(), noise_like(x0, rng), floor), source, floor, zero, text, &memory, &next});
  return next;
}

ClipRun roll_out(const EditNet& net, const Tensor& source, const TextContext& text, const StreamState& memory,
                 const RolloutPlan& plan, Rng& rng) {
  ClipRun run{{}, memory};
  Tensors clean;
  for_chunks(source, plan, [&](int64_t begin, int64_t end) {
    const Tensor s = source.slice(2, begin, end);
    Tensor z = noise_like(s, rng), x0;
    for (int64_t k = 0; k <= plan.exit; ++k) {
      const NoGrad off(!(plan.graded && k == plan.exit));
      const double t = plan.steps[size_t(k)];
      const Tensor sigma = levels_of(s.dim(0), table_level(t, plan.shift));
      x0 = clean_of(z, net({z, s, sigma, levels_of(s.dim(0), t), text, &run.memory}), sigma);
      if (k == plan.exit) break;
      const double next = table_level(plan.steps[size_t(k) + 1], plan.shift);
      z = noised(x0, noise_like(x0, rng), levels_of(s.dim(0), next));
    }
    run.memory = write_memory(net, x0, s, text, run.memory, plan.shift, rng);
    clean.push_back(x0);
  });
  run.x0 = cat(clean, 2);
  return run;
}

ReverseRun run_reverse(const EditNet& net, const Tensor& edit, const Tensor& source,
                       const TextContext& reverse, const StreamState& memory, const RolloutPlan& plan,
                       Rng& rng) {
  check(edit.shape() == source.shape(), "reverse: the edit has shape ", edit.shape(), ", the source ",
        source.shape());
  const NoGrad off(!plan.graded);
  ReverseRun run{{}, memory};
  Tensors predicted, wanted;
  for_chunks(source, plan, [&](int64_t begin, int64_t end) {
    const Tensor s = source.detach().slice(2, begin, end), e = edit.detach().slice(2, begin, end);
    const double t = plan.steps[size_t(plan.exit)];
    const Tensor sigma = levels_of(s.dim(0), table_level(t, plan.shift)), eps = noise_like(s, rng);
    const Tensor y = noised(s, eps, sigma);
    const Tensor v = net({y, e, sigma, levels_of(s.dim(0), t), reverse, &run.memory});
    predicted.push_back(v);
    wanted.push_back(eps - s);
    run.memory = write_memory(net, clean_of(y, v, sigma), e, reverse, run.memory, plan.shift, rng);
  });
  run.loss = mse_loss(cat(predicted, 2), cat(wanted, 2));
  return run;
}

}  // namespace rivulet
