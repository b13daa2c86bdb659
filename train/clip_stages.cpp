#include "train/clip_stages.h"

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

constexpr uint64_t kNoiseStream = 0x0de;

// The frames of each chunk of a clip of T latents as the student will see them.
std::vector<int64_t> student_chunks(const EditModel& student, int64_t T) {
  const std::vector<int64_t> chunks = split_clip(T, student.config().dit.chunk_frames);
  check(chunks[0] == student.config().first_chunk_frames, "ode: clips of ", T,
        " latents start with a chunk of ", chunks[0], ", the model's first chunk has ",
        student.config().first_chunk_frames);
  return chunks;
}

}  // namespace

ComputeOptions read_compute_options(Fields& f, DType compute) {
  ComputeOptions o{compute};
  f.optional("recompute", o.recompute);
  return o;
}

void prepare(EditModel& model, const ComputeOptions& o) {
  convert(model, o.dtype);
  model.dit.recompute = o.recompute;
}

Tensor clip_flow_loss(const EditNet& net, const Tensor& x0, const Tensor& eps, const Tensor& source,
                      const Tensor& sigma, const Tensor& t, const TextContext& text) {
  return flow_matching_loss(net({noised(x0, eps, sigma), source, sigma, t, text}), eps, x0);
}

StepLoss FlowStage::loss(int64_t step, int64_t micro, Rng& rng) {
  LatentBatch batch = pairs_.get(step * config_.accumulate + micro);
  check(batch.target.defined(), "flow: the examples have no targets");
  std::vector<double> sigma, told;
  for (std::string& text : batch.instructions) {
    if (draw_text_dropout(rng, config_.flow.text_dropout)) text.clear();
    const NoiseLevel level =
        draw_level(rng, config_.flow.shift, config_.flow.logit_mean, config_.flow.logit_std);
    sigma.push_back(level.sigma);
    told.push_back(double(level.t));
  }
  const Shape per_sample{int64_t(sigma.size())};
  const Tensor eps = randn(batch.target.shape(), rng, DType::f32, batch.target.device());
  return {clip_flow_loss(net_of(model_), batch.target, eps, batch.source, Tensor::of(sigma, per_sample),
                         Tensor::of(told, per_sample), model_.encode(batch.instructions))};
}

OdeOptions read_ode_options(Fields f, DType compute) {
  OdeOptions o;
  o.compute = read_compute_options(f, compute);
  f.required("teacher", o.teacher);
  f.required("trajectories", o.trajectories);
  f.optional("count", o.count, at_least(1));
  f.optional("teacher_batch", o.teacher_batch, at_least(1));
  f.optional("solver_steps", o.solver.solver_steps, between(1, 1000));
  f.optional("guidance", o.solver.guidance, between(0, 100));
  f.optional("student_steps", o.solver.steps);
  f.done();
  check_steps(o.solver.steps);
  return o;
}

bool make_trajectories(const EditModel& teacher, const OdeOptions& o, LatentBatches& examples, uint64_t seed,
                       const std::atomic<bool>* stop, const std::function<void(int64_t)>& progress) {
  const NoGrad off;
  const int64_t shards = (o.count + o.teacher_batch - 1) / o.teacher_batch;
  const EditNet net = net_of(teacher);
  for (int64_t shard = 0; shard < shards; ++shard) {
    if (stop && stop->load()) return false;
    if (!has_shard(o.trajectories, shard)) {
      const LatentBatch batch = examples.get(shard);
      Rng rng = Rng{seed}.fork(kNoiseStream).fork(uint64_t(shard));
      const Tensor noise = randn(batch.source.shape(), rng, DType::f32, teacher.device());
      const std::vector<std::string> none(batch.instructions.size());
      save_shard(o.trajectories, shard,
                 teacher_trajectory(net, noise, batch.source, teacher.encode(batch.instructions),
                                    teacher.encode(none), o.solver),
                 batch.source, batch.instructions);
    }
    if (progress) progress(std::min(o.count, (shard + 1) * o.teacher_batch));
  }
  return true;
}

OdeStage::OdeStage(const EditModel& student, const TrainConfig& config, const OdeOptions& options)
    : student_(student),
      config_(config),
      options_(options),
      store_(TrajectoryStore::open(options.trajectories)) {}

StepLoss OdeStage::loss(int64_t, int64_t, Rng& rng) {
  Tensors states, sources;
  std::vector<std::string> texts;
  for (int64_t b = 0; b < config_.batch; ++b) {
    const Trajectory one = store_.get(rng.below(store_.size()));
    states.push_back(one.states);
    sources.push_back(one.source);
    texts.push_back(one.instruction);
  }
  const Tensor all = cat(states, 0);
  const std::vector<int64_t> chunks = student_chunks(student_, all.dim(3));
  MixedStates mixed = mix_states(all, chunks, options_.solver.steps, options_.solver.shift, rng);
  mixed.x = mixed.x.to(student_.device());
  mixed.clean = mixed.clean.to(student_.device());
  return {ode_loss(net_of(student_), mixed, cat(sources, 0).to(student_.device()), student_.encode(texts),
                   chunks)};
}

}  // namespace rivulet
