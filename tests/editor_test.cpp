// The editor as an application uses it: streams, forks, saved states, prompts, refusals.
#include <doctest/doctest.h>

#include "models/editor.h"
#include "models/golden.h"
#include "ops/image.h"
#include "ops/shape.h"
#include "tests/fixtures.h"

using namespace rivulet;

namespace {

EditModelConfig tiny_config() {
  EditModelConfig c = tiny_editor_config();
  c.instruction_tokens = 5;
  c.vocabulary = Vocabulary({"blue", "make", "night", "red"});
  return c;
}

Editor tiny_editor(bool trained_output = true) {
  EditModel model(tiny_config());
  Rng rng{21};
  model.initialise(rng);
  if (trained_output) model.dit.final_linear.weight.add_in_place(randn({48, 32}, rng), 0.05);
  return Editor(model);
}

Tensor frames(int64_t n, uint64_t seed) {
  Rng rng{seed};
  return unit_to_u8(rand_uniform({n, 8, 12, 3}, 0, 1, rng));
}

bool same(const Tensor& a, const Tensor& b) { return a.to_vector() == b.to_vector(); }

}  // namespace

TEST_CASE("an untrained residual editor returns its source") {
  const Editor editor = tiny_editor(false);
  EditState state;
  const Tensor source = frames(3, 1);
  CHECK(same(editor.step(source, editor.encode("make night"), state), source));
}

TEST_CASE("the same seed gives the same frames, another seed others, and the prompt matters") {
  const Editor editor = tiny_editor();
  const auto run = [&](uint64_t seed, const std::string& text) {
    EditState state{.stream = {}, .noise = {seed, 0}};
    return editor.step(frames(3, 1), editor.encode(text), state);
  };
  CHECK(same(run(1, "make night"), run(1, "make night")));
  CHECK_FALSE(same(run(1, "make night"), run(2, "make night")));
  CHECK_FALSE(same(run(1, "make night"), run(1, "red blue")));
  CHECK_FALSE(same(run(1, "blue red"), run(1, "red blue")));
}

TEST_CASE("a whole clip by a bidirectional model") {
  const auto clip_editor = [](const std::string& variant, bool trained_output) {
    EditModelConfig c = tiny_config();
    c.dit.variant = variant;
    EditModel model(c);
    Rng rng{21};
    model.initialise(rng);
    if (trained_output) model.dit.final_linear.weight.add_in_place(randn({48, 32}, rng), 0.05);
    return Editor(model);
  };
  const ClipSampling few{.steps = 3};
  const auto run = [&](const Editor& editor, const Tensor& source, const ClipSampling& sampling,
                       uint64_t seed = 1) {
    Rng rng{seed};
    return editor.edit_clip(source, editor.encode("make night"), rng, sampling);
  };
  const Tensor source = frames(7, 1);
  CHECK(same(run(clip_editor("bidirectional", false), source, few), source));

  const Editor editor = clip_editor("bidirectional", true);
  const Tensor edit = run(editor, source, few);
  CHECK(edit.shape() == source.shape());
  CHECK(same(run(editor, source, few), edit));
  CHECK_FALSE(same(run(editor, source, few, 2), edit));
  CHECK_FALSE(same(run(editor, source, {.steps = 3, .guidance = 1}), edit));
  CHECK_FALSE(same(run(editor, source, {.steps = 4}), edit));
  // The first frame's edit knows of the last frame.
  const Tensor other_end = cat({source.slice(0, 0, 6), frames(1, 9)}, 0);
  CHECK_FALSE(same(run(editor, other_end, few).slice(0, 0, 1), edit.slice(0, 0, 1)));
  CHECK_THROWS_WITH_AS(run(clip_editor("streaming", true), source, few),
                       doctest::Contains("needs a bidirectional model"), Error);
}

TEST_CASE("a copied state is a fork, and a saved one resumes to the same frames") {
  const TempDir dir;
  const Editor editor = tiny_editor();
  const Prompt prompt = editor.encode("red");
  EditState state{.stream = {}, .noise = {7, 0}};
  for (uint64_t c = 0; c < 3; ++c) editor.step(frames(3, c), prompt, state);
  EditState fork = state;
  save_state(state, dir.path + "/state.safetensors");
  const Tensor here = editor.step(frames(3, 9), prompt, state);
  CHECK(same(here, editor.step(frames(3, 9), prompt, fork)));
  EditState loaded = load_state(dir.path + "/state.safetensors");
  CHECK(loaded.stream.chunk == 3);
  CHECK(same(here, editor.step(frames(3, 9), prompt, loaded)));
}

TEST_CASE("a state of another frame size is refused") {
  const Editor editor = tiny_editor();
  EditState state;
  editor.step(frames(3, 1), editor.encode("red"), state);
  Rng rng{1};
  const Tensor larger = unit_to_u8(rand_uniform({3, 16, 12, 3}, 0, 1, rng));
  CHECK_THROWS_WITH_AS(editor.step(larger, editor.encode("red"), state), doctest::Contains("frame size"),
                       Error);
  CHECK_THROWS_WITH_AS(editor.step(frames(2, 1), editor.encode("red"), state),
                       doctest::Contains("[2, 8, 12, 3]"), Error);
}

TEST_CASE("prompts: empty, unknown and too long ones are named") {
  const Editor editor = tiny_editor();
  CHECK_THROWS_WITH_AS(editor.encode("  "), doctest::Contains("empty"), Error);
  CHECK_THROWS_WITH_AS(editor.encode("make it night, dragon"), doctest::Contains("it, dragon"), Error);
  CHECK_THROWS_WITH_AS(editor.encode("red red red red red red"), doctest::Contains("6 words"), Error);
}

TEST_CASE("a model folder loads to the same weights; a wrong one says all that is wrong") {
  const TempDir dir;
  EditModel model = tiny_editor().model();
  model.save(dir.path + "/m");
  EditModel again = EditModel::load(dir.path + "/m");
  const auto a = named_tensors(model), b = named_tensors(again);
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) CHECK(same(a[i].second, b[i].second));

  std::map<std::string, Tensor> weights;
  for (const auto& [name, t] : a) weights[name] = t.detach();
  weights.erase("dit.final_layer.linear.bias");
  weights["text.word"] = zeros({2, 2});
  save_safetensors(dir.path + "/m/weights.safetensors", weights);
  CHECK_THROWS_WITH_AS(EditModel::load(dir.path + "/m"),
                       doctest::Contains("missing dit.final_layer.linear.bias"), Error);
  CHECK_THROWS_WITH_AS(EditModel::load(dir.path + "/m"), doctest::Contains("text.word has shape [2, 2]"),
                       Error);
  Json config = to_json(tiny_config());
  config["dit"]["widht"] = 3;
  write_file(dir.path + "/m/config.json", config.dump());
  CHECK_THROWS_WITH_AS(EditModel::load(dir.path + "/m"), doctest::Contains("dit.widht"), Error);
}
