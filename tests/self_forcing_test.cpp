// Self-forcing as a schedule: which network sees which clip with which text, what streams keep and forget,
// and two networks under training that stop and resume without a trace.
#include <doctest/doctest.h>

#include <cmath>

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/fixtures.h"
#include "tests/recipe_fixtures.h"
#include "train/distill_trainer.h"

using namespace rivulet;

namespace {

// A text as its letters, so that what a network was asked with can be read from the mask.
TextContext spelled(const std::vector<std::string>& texts) {
  TextContext c{{}, zeros({int64_t(texts.size()), 8}, DType::u8)};
  for (size_t b = 0; b < texts.size(); ++b)
    for (size_t i = 0; i < texts[b].size() && i < 8; ++i)
      c.mask.data<uint8_t>()[b * 8 + i] = uint8_t(texts[b][i]);
  return c;
}

std::string text_of(const Asked& a, int64_t b) {
  std::string text;
  for (double letter : a.text_mask.select(0, b).to_vector())
    if (letter > 0) text += char(letter);
  return text;
}

// Streams of latents whose frame f of example n holds 100 n + f.
Examples counted(int64_t length) {
  return [length](int64_t index) {
    Example e;
    e.source = Tensor({1, length, 1, 1});
    for (int64_t f = 0; f < length; ++f) e.source.data<float>()[f] = float(100 * index + f);
    e.instruction = "to" + std::to_string(index);
    e.reverse_instruction = "back" + std::to_string(index);
    return e;
  };
}

// Re-encoding adds 1000: what was encoded anew is seen.
LatentSpace marked_space() {
  LatentSpace s = identity_space();
  s.last_picture = [](const Tensor& z) { return z.slice(2, z.dim(2) - 1, z.dim(2)) + 1000.0; };
  return s;
}

struct Rig {
  Tensor weight = full({1, 1, 1, 1, 1}, 0.9).set_requires_grad();
  Tensor critic_weight = full({1, 1, 1, 1, 1}, 0.5).set_requires_grad();
  Recorder student{[this](const NetCall& c) { return (c.x - c.source * weight) / over_latents(c.sigma); }};
  Recorder real{[](const NetCall& c) { return (c.x - c.source) / over_latents(c.sigma); }};
  Recorder fake{[this](const NetCall& c) { return c.x * critic_weight; }};
  LatentBatches data;
  SelfForcing stage;

  Rig(int64_t length, const std::string& reverse)
      : data(counted(length), marked_space(), 2),
        stage({student.net(), spelled}, {real.net(), spelled}, {fake.net(), spelled}, options(reverse),
              data) {}
  static SelfForcingOptions options(const std::string& reverse) {
    SelfForcingOptions o;
    o.reverse = reverse;
    return o;
  }
  void forget() { student.calls.clear(), real.calls.clear(), fake.calls.clear(); }
};

std::vector<double> first_sample(const Tensor& x) { return x.select(0, 0).reshape({-1}).to_vector(); }

}  // namespace

TEST_CASE("betas, clipping and average of self-forcing differ from those of the stages before") {
  const auto config = [](const std::string& task) {
    return train_config({{"task", task},
                         {"steps", 1},
                         {"stage", Json::object()},
                         {"model", Json::object()},
                         {"output", {{"dir", "x"}}}},
                        "test");
  };
  for (const char* task : {"flow", "ode"}) {
    CHECK(config(task).optimizer.beta1 == 0.9);
    CHECK(config(task).optimizer.beta2 == 0.999);
    CHECK(config(task).flow.shift == 3);  // of stage (a); the distillation has 8
  }
  const TrainConfig c = config("self_forcing");
  CHECK(c.optimizer.beta1 == 0);
  CHECK(c.optimizer.beta2 == 0.999);
  CHECK(c.clip_norm == 10);
  CHECK(c.ema_decay == 0.99);
  CHECK(c.ema_start == 200);
  CHECK(to_json(train_config(to_json(c), "again")) == to_json(c));
  const SelfForcingOptions o =
      read_self_forcing_options(Fields({{"real", "r"}, {"fake", "f"}}, "test"), DType::f32);
  CHECK(o.critic.beta1 == 0);
  CHECK(o.critic.beta2 == 0.999);
  CHECK(o.score.shift == 8);
  CHECK(o.score.guidance == 3);
  CHECK(o.reverse_weight == 0.5);
  CHECK(o.steps == std::vector<double>{1000, 961, 893, 743});
  CHECK(o.ratio == 4);
}

TEST_CASE("a turn of the student: scores see the window with its source, the reverse pass its own edit") {
  Rig rig(56, "paper");
  Rng rng{1};
  rig.stage.student_loss(0, {1, 2}, rng);
  // Three chunks of two steps and a memory write, then three of a reverse step and a write.
  REQUIRE(rig.student.calls.size() == 15);
  for (size_t i = 0; i < 15; ++i) {
    const Asked& a = rig.student.calls[i];
    CHECK(text_of(a, 0) == (i < 9 ? "to0" : "back0"));
    CHECK(text_of(a, 1) == (i < 9 ? "to1" : "back1"));
  }
  CHECK(rig.student.calls[1].t.to_vector()[0] == 961);
  CHECK(rig.student.calls[9].t.to_vector()[0] == 893);
  CHECK(first_sample(rig.student.calls[9].source)[4] == doctest::Approx(0.9 * 4));  // beside the edit
  REQUIRE(rig.real.calls.size() == 2);
  CHECK(text_of(rig.real.calls[0], 1) == "to1");
  CHECK(text_of(rig.real.calls[1], 1) == "");
  REQUIRE(rig.fake.calls.size() == 1);
  CHECK(text_of(rig.fake.calls[0], 0) == "to0");
  rig.forget();
  StepLoss second = rig.stage.student_loss(0, {0, 0}, rng);
  // Frames 9 and 10 are known; the first of them was encoded anew, in the source as well.
  const std::vector<double> window{1009, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
  for (const Asked& a : rig.real.calls) CHECK(first_sample(a.source) == window);
  CHECK(first_sample(rig.fake.calls[0].source) == window);
  CHECK(first_sample(rig.student.calls[0].source) == std::vector<double>{11, 12, 13});
  CHECK(second.metrics.size() == 2);
  backward(second.loss);
  CHECK(rig.weight.grad().defined());
  CHECK_FALSE(rig.critic_weight.grad().defined());
}

TEST_CASE(
    "a turn of the fake score: a rollout off the tape, no guidance, and the reverse memory keeps in step") {
  Rig rig(56, "paper");
  Rng rng{2};
  const StepLoss loss = rig.stage.critic_loss(0, {2, 1}, rng);
  for (const Asked& a : rig.student.calls) CHECK_FALSE(a.graded);
  CHECK(rig.real.calls.empty());
  REQUIRE(rig.fake.calls.size() == 1);
  CHECK(rig.fake.calls[0].graded);
  CHECK(text_of(rig.fake.calls[0], 0) == "to0");
  backward(loss.loss);
  CHECK(rig.critic_weight.grad().defined());
  CHECK_FALSE(rig.weight.grad().defined());
  const SelfForcing::Stream& s = rig.stage.stream(0);
  CHECK(s.memory.frames == 11);
  CHECK(s.reverse_memory.frames == 11);
  rig.stage.student_loss(0, {0, 0}, rng);
  rig.stage.critic_loss(0, {0, 0}, rng);
  CHECK(s.memory.frames == 29);
  CHECK(s.reverse_memory.frames == 29);
  CHECK(s.reverse_memory.chunk == s.memory.chunk);
}

TEST_CASE("a stream of 56 latents has 6 clips; then nothing of it is left") {
  Rig rig(56, "paper");
  Rng rng{3};
  for (int64_t clip = 0; clip < 6; ++clip) {
    rig.stage.critic_loss(0, {0, 0}, rng);
    CHECK(rig.stage.stream(0).clip == clip + 1);
    CHECK(rig.stage.stream(0).memory.frames == 11 + 9 * clip);
  }
  rig.forget();
  rig.stage.student_loss(0, {0, 0}, rng);
  CHECK(rig.stage.stream(0).round == 1);
  CHECK(rig.stage.stream(0).memory.frames == 11);
  CHECK(rig.student.calls[0].past_frames == 0);
  CHECK(rig.student.calls[6].past_frames == 0);  // of the reverse pass
  CHECK(text_of(rig.student.calls[0], 0) == "to2");
  CHECK(first_sample(rig.fake.calls[0].source)[0] == 200);
}

TEST_CASE("the kinds of reverse task: none, another stream's instruction, the source from itself") {
  Rng rng{4};
  Rig none(11, "none");
  none.stage.student_loss(0, {0, 0}, rng);
  CHECK(none.student.calls.size() == 6);
  Rig wrong(11, "wrong");
  wrong.stage.student_loss(0, {0, 0}, rng);
  CHECK(text_of(wrong.student.calls[6], 0) == "back1");
  CHECK(text_of(wrong.student.calls[6], 1) == "back0");
  Rig identity(11, "identity");
  identity.stage.student_loss(0, {0, 0}, rng);
  CHECK(text_of(identity.student.calls[6], 0) == "keep eve");
  CHECK(first_sample(identity.student.calls[6].source)[4] == 4);
  CHECK_THROWS_WITH_AS(
      read_self_forcing_options(
          Fields({{"real", "r"}, {"fake", "f"}, {"reverse", {{"kind", "both"}}}}, "test"), DType::f32),
      doctest::Contains("both"), Error);
}

TEST_CASE("over the 4 to 1 schedule every clip of a stream comes to the student") {
  for (int64_t clips : {6, 13}) {
    std::vector<bool> seen(static_cast<size_t>(clips));
    int64_t at = 0;
    const SelfForcingOptions o;
    for (int64_t step = 0; step < 4 * clips; ++step) {
      if (o.student_turn(step)) seen[size_t(at++ % clips)] = true;
      ++at;
    }
    CHECK(std::count(seen.begin(), seen.end(), true) == clips);
  }
}

namespace {

Examples random_streams() {
  return [](int64_t index) {
    Rng rng = Rng{77}.fork(uint64_t(index));
    return Example{randn({4, 29, 2, 2}, rng), {}, {}, index % 2 ? "make red" : "make blue", "keep red"};
  };
}

TrainConfig run_config(const std::string& dir, int64_t steps) {
  return train_config({{"task", "self_forcing"},
                       {"steps", steps},
                       {"batch", 1},
                       {"accumulate", 2},
                       {"seed", 5},
                       {"optimizer", {{"lr", 1e-3}}},
                       {"ema", {{"decay", 0.9}, {"start_step", 4}}},
                       {"stage", Json::object()},
                       {"model", Json::object()},
                       {"output", {{"dir", dir}}}},
                      "test");
}

struct Run {
  EditModel student{tiny_latent_config()}, real{tiny_latent_config()}, fake{tiny_latent_config()};
  LatentBatches data{random_streams(), identity_space(), 1, 2};
  SelfForcingOptions options;
  std::unique_ptr<SelfForcing> stage;
  std::unique_ptr<DistillTrainer> trainer;
  std::atomic<bool> stop{false};

  Run(const TrainConfig& config, DType dtype) {
    options.compute = {dtype, true};
    options.reverse = "paper";
    options.critic_lr = 1e-3;
    fill_random(student, 1);
    fill_random(real, 2);
    fill_random(fake, 2);
    for (EditModel* m : {&student, &real, &fake}) prepare(*m, options.compute);
    stage = std::make_unique<SelfForcing>(role_of(student), role_of(real), role_of(fake), options, data, 2);
    trainer = std::make_unique<DistillTrainer>(config, options, *stage, named_tensors(student),
                                               named_tensors(fake));
  }
  // Everything that training changes.
  std::vector<double> values() {
    std::vector<double> all;
    for (const NamedTensors& list :
         {trainer->student_values(), trainer->fake_values(), trainer->ema().average()})
      for (const auto& [name, t] : list)
        for (double v : t.to_vector()) all.push_back(v);
    return all;
  }
};

}  // namespace

TEST_CASE("self-forcing that stops after any step and resumes ends with the same bits") {
  for (DType dtype : {DType::f32, DType::bf16}) {
    CAPTURE(int(dtype));
    const TempDir whole;
    Run one(run_config(whole.path, 6), dtype);
    CHECK(one.trainer->run());
    for (int64_t first : {1, 3, 5}) {
      CAPTURE(first);
      const TempDir halves;
      {
        Run start(run_config(halves.path, 6), dtype);
        start.trainer->on_step([&, n = 0](const NamedTensors&) mutable {
          // The student steps first in steps 0 and 4, so step k ends with this many calls.
          if (++n == first + 1 + (first > 4)) start.stop = true;
        });
        CHECK_FALSE(start.trainer->run(nullptr, &start.stop));
        REQUIRE(start.trainer->steps_done() == first);
      }
      Run rest(run_config(halves.path, 6), dtype);
      REQUIRE(rest.trainer->resume_latest());
      CHECK(rest.trainer->run());
      CHECK(rest.values() == one.values());
    }
  }
}

TEST_CASE("the average moves with the student alone, and begins at its step") {
  const TempDir dir;
  Run run(run_config(dir.path, 9), DType::f32);
  std::vector<std::vector<double>> averages;
  run.trainer->on_step([&](const NamedTensors&) {
    averages.emplace_back();
    for (const auto& [name, t] : run.trainer->ema().average())
      for (double v : t.to_vector()) averages.back().push_back(v);
  });
  run.trainer->run();
  // Calls: student and fake in steps 0, 4 and 8, the fake alone in the others.
  REQUIRE(averages.size() == 12);
  for (size_t i = 0; i < 6; ++i)
    CHECK(averages[i].empty());  // up to the student's step 4, after which it begins
  for (size_t i = 6; i <= 10; ++i) CHECK(averages[i] == averages[6]);
  CHECK_FALSE(averages[11] == averages[6]);
  CHECK_FALSE(averages[6].empty());
}
