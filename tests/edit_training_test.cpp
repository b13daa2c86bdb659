// Training an editor end to end in miniature: the loss falls, and a resumed run is the uninterrupted one.
#include <doctest/doctest.h>

#include "tests/fixtures.h"
#include "train/edit_samples.h"
#include "train/edit_training.h"

using namespace rivulet;

namespace {

EditModelConfig tiny_model() {
  EditModelConfig c = tiny_editor_config();
  c.vocabulary = instruction_vocabulary();
  return c;
}

TrainConfig run_config(const std::string& dir, int64_t steps) {
  return train_config({{"steps", steps},
                       {"batch", 2},
                       {"seed", 4},
                       {"optimizer", {{"lr", 3e-3}, {"betas", {0.9, 0.99}}, {"clip_norm", 1}}},
                       {"flow", {{"shift", 8}, {"text_dropout", 0.1}, {"seam", 0.5}}},
                       {"clip", {{"width", 24}, {"height", 16}, {"frames", 6}}},
                       {"model", {{"name", "tiny"}}},
                       {"output", {{"dir", dir}}}},
                      "test");
}

struct Run {
  EditModel model{tiny_model()};
  std::unique_ptr<EditTraining> training;
  std::unique_ptr<Trainer> trainer;
  std::atomic<bool> stop{false};
  int64_t stop_at = -1;  // the step during which `stop` is raised

  explicit Run(const TrainConfig& config) {
    Rng rng{uint64_t(config.seed)};
    model.initialise(rng);
    ShapeEditConfig mix;
    mix.look = 1;
    mix.recolour = mix.keep = 0;
    mix.looks = {"negative"};
    const auto data = std::make_shared<const ShapeEdit>(mix);
    const auto pair = [this, data](int64_t index) {
      const Sample s = data->sample(index % 4, {6, 16, 24});
      return EditPair{model.codec().encode(s.source), model.codec().encode(s.target), s.instruction};
    };
    training = std::make_unique<EditTraining>(model, config, pair, 2);
    trainer =
        std::make_unique<Trainer>(config, named_tensors(model), [this](int64_t step, int64_t micro, Rng& r) {
          if (step == stop_at) stop = true;
          return training->loss(step, micro, r);
        });
  }
  std::vector<double> weights() {
    std::vector<double> all;
    for (const auto& [name, t] : named_tensors(model))
      for (double v : t.detach().to_vector()) all.push_back(v);
    return all;
  }
};

}  // namespace

TEST_CASE("a clip is cut into the chunks of inference") {
  EditModelConfig c = tiny_model();
  c.first_chunk_frames = 5;
  CHECK(chunk_lengths(c, 13) == std::vector<int64_t>{5, 3, 3});
  CHECK_THROWS_WITH_AS(chunk_lengths(c, 4), doctest::Contains("4 frames"), Error);
}

TEST_CASE("training lowers the loss well below that of copying the source") {
  const TempDir dir;
  Run run(run_config(dir.path, 60));
  Rng rng{1};
  const double before = run.training->loss(1000, 0, rng).loss.item();
  run.trainer->run();
  Rng again{1};
  const double after = run.training->loss(1000, 0, again).loss.item();
  CHECK(after < 0.3 * before);
}

TEST_CASE("a run that stops and resumes ends with the same bits") {
  const TempDir whole, halves;
  Run one(run_config(whole.path, 6));
  one.trainer->run();
  {
    Run first(run_config(halves.path, 6));
    first.stop_at = 1;
    CHECK_FALSE(first.trainer->run(nullptr, &first.stop));
    CHECK(first.trainer->steps_done() == 2);
  }
  Run second(run_config(halves.path, 6));
  REQUIRE(second.trainer->resume_latest());
  CHECK(second.trainer->run());
  CHECK(second.weights() == one.weights());
}

TEST_CASE("a trained editor shows its edit on a whole clip") {
  const TempDir dir;
  Run run(run_config(dir.path, 2));
  run.trainer->run();
  const ShapeEdit data(ShapeEditConfig{});
  const Tensor sheet =
      sample_sheet(Editor(run.model), {data.sample(1, {6, 16, 24}), data.sample(2, {6, 16, 24})}, 1);
  CHECK(sheet.shape() == Shape{32, 72, 3});
}
