#include "train/stage_samples.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/optim.h"
#include "ops/shape.h"
#include "train/rollout.h"

namespace rivulet {
namespace {

Tensor edit_whole(const EditModel& model, const Tensor& source, const TextContext& text,
                  const TextContext& negative, const StageSampling& o, Rng& rng) {
  const EditNet net = net_of(model);
  const auto velocity = [&](const Tensor& x, double t, double sigma) {
    const Tensor level = levels_of(x.dim(0), sigma), told = levels_of(x.dim(0), t);
    const Tensor v = net({x, source, level, told, text});
    if (o.guidance == 1) return v;
    const Tensor uncond = net({x, source, level, told, negative});
    return uncond + (v - uncond) * o.guidance;
  };
  return sample_multistep(velocity, randn(source.shape(), rng, DType::f32, source.device()),
                          solver_levels(o.solver_steps));
}

Tensor edit_stream(const EditModel& model, const Tensor& source, const TextContext& text,
                   const StageSampling& o, Rng& rng) {
  const EditNet net = net_of(model);
  StreamState memory;
  Tensors edited;
  int64_t at = 0;
  for (int64_t length : split_clip(source.dim(2), model.config().dit.chunk_frames)) {
    const Tensor s = source.slice(2, at, at + length);
    at += length;
    const auto velocity = [&](const Tensor& x, double t, double sigma) {
      return net({x, s, levels_of(x.dim(0), sigma), levels_of(x.dim(0), t), text, &memory});
    };
    edited.push_back(sample(velocity, randn(s.shape(), rng, DType::f32, s.device()), o.student, rng));
    const Tensor zero = levels_of(s.dim(0), 0);
    StreamState next;
    net({edited.back(), s, zero, zero, text, &memory, &next});
    memory = next;
  }
  return cat(edited, 2);
}

Tensor last_frames(const LatentSpace& space, const Tensor& latents) {
  const Tensor frames = space.decode(latents);
  return unit_to_u8(clamp(frames.select(1, frames.dim(1) - 1), 0, 1).contiguous());
}

}  // namespace

Tensor edit_latents(const EditModel& model, const Tensor& source,
                    const std::vector<std::string>& instructions, const StageSampling& options, Rng& rng) {
  const NoGrad off;
  const TextContext text = model.encode(instructions);
  if (options.streaming) return edit_stream(model, source, text, options, rng);
  return edit_whole(model, source, text, model.encode(std::vector<std::string>(instructions.size())), options,
                    rng);
}

StageSheet stage_sheet(const EditModel& model, const LatentSpace& space, const LatentBatch& batch,
                       const StageSampling& options, uint64_t seed) {
  const NoGrad off;
  Rng rng{seed};
  const Tensor edited = edit_latents(model, batch.source, batch.instructions, options, rng);
  Tensors columns = {last_frames(space, batch.source), last_frames(space, edited)};
  StageSheet sheet{{}, std::nan("")};
  if (batch.target) {
    columns.push_back(last_frames(space, batch.target));
    sheet.score =
        1 - std::sqrt(sum_of_squares(edited - batch.target) / sum_of_squares(batch.source - batch.target));
  }
  sheet.pixels = cat(columns, 2).flatten(0, 1);
  return sheet;
}

}  // namespace rivulet
