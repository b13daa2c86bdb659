#include "train/ode_init.h"

#include <cmath>
#include <filesystem>

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

std::string shard_path(const std::string& dir, int64_t shard) {
  return (std::filesystem::path(dir) / ("shard_" + std::to_string(shard) + ".safetensors")).string();
}

}  // namespace

Tensor teacher_trajectory(const EditNet& teacher, const Tensor& noise, const Tensor& source,
                          const TextContext& text, const TextContext& negative, const TeacherOptions& o) {
  const NoGrad off;
  const auto velocity = [&](const Tensor& x, double t, double sigma) {
    const Tensor level = levels_of(x.dim(0), sigma), told = levels_of(x.dim(0), t);
    const Tensor v = teacher({x, source, level, told, text});
    if (o.guidance == 1) return v;
    const Tensor uncond = teacher({x, source, level, told, negative});
    return uncond + (v - uncond) * o.guidance;
  };
  const std::vector<double> levels = solver_levels(o.solver_steps, o.shift, o.steps);
  Tensors kept;
  sample_multistep(velocity, noise, levels, [&](size_t i, const Tensor& x) {
    const size_t k = kept.size();
    const double wanted = k < o.steps.size() ? table_level(o.steps[k], o.shift) : 0;
    if (std::abs(levels[i] - wanted) < 1e-9) kept.push_back(x);
  });
  check(kept.size() == o.steps.size() + 1, "teacher: the solver met ", kept.size(), " of ",
        o.steps.size() + 1, " levels");
  return stack(kept, 1);
}

MixedStates mix_states(const Tensor& states, const std::vector<int64_t>& chunks,
                       const std::vector<double>& steps, double shift, Rng& rng) {
  const int64_t B = states.dim(0), K = int64_t(steps.size()), T = states.dim(3);
  check(states.dims() == 6 && states.dim(1) == K + 1, "ode init: states of shape ", states.shape(), " for ",
        K, " steps");
  MixedStates m;
  m.clean = states.select(1, K);
  m.sigma = zeros({B, T});
  m.t = zeros({B, T});
  m.trained = zeros({B, T});
  Tensors samples;
  for (int64_t b = 0; b < B; ++b) {
    Tensors parts;
    int64_t at = 0;
    for (int64_t length : chunks) {
      const int64_t k = rng.below(K + 1), end = at + length;
      parts.push_back(states.select(0, b).select(0, k).slice(1, at, end));
      if (k < K) {
        const auto set = [&](const Tensor& per_frame, double value) {
          per_frame.select(0, b).slice(0, at, end).fill(value);
        };
        set(m.sigma, table_level(steps[size_t(k)], shift));
        set(m.t, steps[size_t(k)]);
        set(m.trained, 1);
      }
      at = end;
    }
    check(at == T, "ode init: chunks of ", at, " frames for trajectories of ", T);
    samples.push_back(cat(parts, 1));
  }
  m.x = stack(samples, 0);
  return m;
}

Tensor ode_loss(const EditNet& student, const MixedStates& in, const Tensor& source, const TextContext& text,
                const std::vector<int64_t>& chunks) {
  const Tensor v = chunk_causal(student, in.x, source, in.sigma, in.t, text, chunks);
  return masked_mse(clean_of(in.x, v, in.sigma), in.clean, over_latents(in.trained).to(v.device()));
}

bool has_shard(const std::string& dir, int64_t shard) {
  return std::filesystem::exists(shard_path(dir, shard));
}

void save_shard(const std::string& dir, int64_t shard, const Tensor& states, const Tensor& source,
                const std::vector<std::string>& instructions) {
  check(states.dim(0) == int64_t(instructions.size()) && source.dim(0) == states.dim(0),
        "trajectories: ", instructions.size(), " instructions for states of shape ", states.shape());
  std::filesystem::create_directories(dir);
  const auto half = [](const Tensor& x) { return x.detach().to(Device::cpu).contiguous().to(DType::f16); };
  save_safetensors(shard_path(dir, shard), {{"states", half(states)}, {"source", half(source)}},
                   {{"instructions", Json(instructions).dump()}});
}

TrajectoryStore TrajectoryStore::open(const std::string& dir) {
  TrajectoryStore store;
  for (int64_t n = 0; has_shard(dir, n); ++n) {
    const SafeTensors file(shard_path(dir, n));
    const auto texts = file.metadata().find("instructions");
    check(texts != file.metadata().end(), file.path(), ": not a shard of trajectories");
    const Json list = parse_json(texts->second, file.path());
    Shard shard{file.get("states"), file.get("source")};
    check(shard.states.dims() == 6 && shard.source.dims() == 5 && list.is_array() &&
              int64_t(list.size()) == shard.states.dim(0) && shard.source.dim(0) == shard.states.dim(0),
          file.path(), ": ", list.size(), " instructions for states of shape ", shard.states.shape(),
          " and sources of shape ", shard.source.shape());
    for (int64_t row = 0; row < shard.states.dim(0); ++row) {
      store.place_.emplace_back(store.shards_.size(), row);
      store.instructions_.push_back(list[size_t(row)].get<std::string>());
    }
    store.shards_.push_back(shard);
  }
  check(store.size() > 0, dir, ": holds no trajectories");
  return store;
}

Trajectory TrajectoryStore::get(int64_t index) const {
  check(index >= 0 && index < size(), "trajectories: ", index, " of ", size());
  const auto [shard, row] = place_[size_t(index)];
  const auto one = [row = row](const Tensor& x) { return x.slice(0, row, row + 1).to(DType::f32); };
  return {one(shards_[shard].states), one(shards_[shard].source), instructions_[size_t(index)]};
}

}  // namespace rivulet
