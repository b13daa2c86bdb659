#include "train/self_forcing.h"

#include <algorithm>

#include "models/flow.h"
#include "models/sana_streaming/stream_file.h"
#include "ops/elementwise.h"

namespace rivulet {

SelfForcingOptions read_self_forcing_options(Fields f, DType compute) {
  SelfForcingOptions o;
  o.compute = read_compute_options(f, compute);
  f.optional("student", o.student);
  f.required("real", o.real);
  f.required("fake", o.fake);
  f.optional("student_steps", o.steps);
  f.optional("window", o.rules.window, at_least(2));
  f.optional("fresh", o.rules.fresh, at_least(1));
  f.optional("guidance", o.score.guidance, between(0, 100));
  f.optional("ratio", o.ratio, at_least(1));
  Fields critic = f.object("critic");
  std::vector<double> betas{o.critic.beta1, o.critic.beta2};
  critic.optional("lr", o.critic_lr, above(0));
  critic.optional("betas", betas, from_below(0, 1));
  check(betas.size() == 2, critic.where("betas"), " must hold 2 numbers, not ", betas.size());
  o.critic.beta1 = betas[0];
  o.critic.beta2 = betas[1];
  critic.optional("eps", o.critic.eps, above(0));
  critic.optional("weight_decay", o.critic.weight_decay, at_least(0));
  critic.optional("clip_norm", o.critic_clip_norm, at_least(0));
  critic.done();
  Fields reverse = f.object("reverse");
  reverse.choice("kind", o.reverse, {"none", "paper", "identity", "wrong"});
  reverse.optional("weight", o.reverse_weight, at_least(0));
  reverse.optional("identity_instruction", o.identity_instruction);
  reverse.done();
  f.done();
  check_steps(o.steps);
  return o;
}

Role role_of(const EditModel& model) {
  return {net_of(model), [&model](const std::vector<std::string>& texts) { return model.encode(texts); }};
}

SelfForcing::SelfForcing(Role student, Role real, Role fake, const SelfForcingOptions& options,
                         LatentBatches& streams, int64_t groups)
    : student_(std::move(student)),
      real_(std::move(real)),
      fake_(std::move(fake)),
      options_(options),
      data_(streams),
      streams_(size_t(groups)) {
  check(groups >= 1, "self-forcing: ", groups, " groups of streams");
  check(options.reverse != "wrong" || streams.batch() > 1,
        "self-forcing: the wrong reverse instruction is another stream's, so a batch needs at least 2");
}

ExitSteps SelfForcing::draw_exits(Rng& rng) const {
  const int64_t steps = int64_t(options_.steps.size()), forward = rng.below(steps);
  return {forward, rng.below(steps)};
}

void SelfForcing::begin(int64_t group, int64_t round) {
  Stream s;  // nothing of the stream before may stay
  s.round = round;
  s.data = data_.get(round * int64_t(streams_.size()) + group);
  s.clips = clips_of(s.data.source.dim(2), options_.rules);
  for (const std::string& text : s.data.reverse_instructions)
    check(options_.reverse == "none" || !text.empty(), "self-forcing: a stream has no reverse instruction");
  streams_[size_t(group)] = std::move(s);
}

TextContext SelfForcing::reverse_text(const LatentBatch& data) const {
  std::vector<std::string> texts = data.reverse_instructions;
  if (options_.reverse == "identity") std::fill(texts.begin(), texts.end(), options_.identity_instruction);
  if (options_.reverse == "wrong") std::rotate(texts.begin(), texts.begin() + 1, texts.end());
  return student_.encode(texts);
}

SelfForcing::Rolled SelfForcing::roll(int64_t group, const ExitSteps& exits, bool graded, Rng& rng) {
  if (streams_[size_t(group)].clip == int64_t(streams_[size_t(group)].clips.size()))
    begin(group, streams_[size_t(group)].round + 1);
  Stream& s = streams_[size_t(group)];
  const NoGrad off(!graded);
  const Clip& clip = s.clips[size_t(s.clip)];
  const Tensor source = s.data.source.slice(2, clip.start, clip.start + clip.frames);
  RolloutPlan plan;
  plan.chunks = clip.chunks;
  plan.steps = options_.steps;
  plan.shift = options_.score.shift;
  plan.exit = exits.forward;
  plan.graded = graded;
  const ClipRun run =
      roll_out(student_.net, source, student_.encode(s.data.instructions), s.memory, plan, rng);
  s.memory = run.memory;
  Rolled out;
  if (options_.reverse != "none") {
    plan.exit = exits.reverse;
    const Tensor condition = options_.reverse == "identity" ? source : run.x0;
    const ReverseRun back =
        run_reverse(student_.net, condition, source, reverse_text(s.data), s.reverse_memory, plan, rng);
    s.reverse_memory = back.memory;
    out.reverse_loss = back.loss;
  }
  out.window = next_window(run.x0, source, options_.rules, s.history, data_.space().last_picture);
  ++s.clip;
  return out;
}

StepLoss SelfForcing::student_loss(int64_t group, const ExitSteps& exits, Rng& rng) {
  const Rolled rolled = roll(group, exits, true, rng);
  const Window& w = rolled.window;
  const std::vector<std::string>& texts = stream(group).data.instructions;
  const ScoreNoise noise = draw_score_noise(w.latents, options_.score, rng);
  TextContext real, negative, fake;
  {
    const NoGrad off;
    real = real_.encode(texts);
    negative = real_.encode(std::vector<std::string>(texts.size()));
    fake = fake_.encode(texts);
  }
  const Tensor dmd = dmd_loss(real_.net, fake_.net, {real, negative, fake}, w.latents, w.source, w.mask,
                              noise, options_.score.guidance);
  StepLoss out{dmd, {{"dmd", dmd.item()}}};
  if (!rolled.reverse_loss) return out;
  out.loss = dmd + rolled.reverse_loss * options_.reverse_weight;
  out.metrics.emplace_back("reverse", rolled.reverse_loss.item());
  return out;
}

StepLoss SelfForcing::critic_loss(int64_t group, const ExitSteps& exits, Rng& rng) {
  const Window w = roll(group, exits, false, rng).window;
  const ScoreNoise noise = draw_score_noise(w.latents, options_.score, rng);
  return {rivulet::critic_loss(fake_.net, fake_.encode(stream(group).data.instructions), w.latents, w.source,
                               w.mask, noise)};
}

Json SelfForcing::save(std::map<std::string, Tensor>& tensors) const {
  Json list = Json::array();
  for (size_t g = 0; g < streams_.size(); ++g) {
    const Stream& s = streams_[g];
    const std::string at = "stream." + std::to_string(g) + ".";
    put_stream(s.memory, at + "memory.", tensors);
    put_stream(s.reverse_memory, at + "reverse.", tensors);
    if (s.history.latents) {
      tensors[at + "latents"] = s.history.latents.to(Device::cpu);
      tensors[at + "source"] = s.history.source.to(Device::cpu);
    }
    list.push_back({{"round", s.round},
                    {"clip", s.clip},
                    {"chunks", s.memory.chunk},
                    {"frames", s.memory.frames},
                    {"reverse_chunks", s.reverse_memory.chunk},
                    {"reverse_frames", s.reverse_memory.frames},
                    {"blocks", s.memory.blocks.size()},
                    {"reverse_blocks", s.reverse_memory.blocks.size()}});
  }
  return {{"streams", list}};
}

void SelfForcing::load(const SafeTensors& file, const Json& progress) {
  const Json list = progress.value("streams", Json::array());
  check(list.is_array() && list.size() == streams_.size(), file.path(), ": holds ", list.size(),
        " groups of streams, this run has ", streams_.size());
  for (size_t g = 0; g < streams_.size(); ++g) {
    Fields f(list[g], file.path() + ": stream");
    const auto count = [&](const char* name) {
      int64_t n = 0;
      f.required(name, n, at_least(-1));
      return n;
    };
    const int64_t round = count("round");
    if (round < 0) continue;
    begin(int64_t(g), round);
    Stream& s = streams_[g];
    const Device device = s.data.source.device();
    const std::string at = "stream." + std::to_string(g) + ".";
    s.clip = count("clip");
    check(s.clip <= int64_t(s.clips.size()), file.path(), ": stream ", g, " stands at clip ", s.clip, " of ",
          s.clips.size());
    s.memory = get_stream(file, at + "memory.", count("chunks"), count("frames"), count("blocks"));
    s.reverse_memory = get_stream(file, at + "reverse.", count("reverse_chunks"), count("reverse_frames"),
                                  count("reverse_blocks"));
    move_to(s.memory, device);
    move_to(s.reverse_memory, device);
    if (file.contains(at + "latents"))
      s.history = {file.get(at + "latents").to(device), file.get(at + "source").to(device)};
  }
}

}  // namespace rivulet
