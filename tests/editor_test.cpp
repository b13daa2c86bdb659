// The editor as an application uses it: streams, forks, saved states, prompts, refusals.
#include <doctest/doctest.h>

#include "models/editor.h"
#include "models/golden.h"
#include "ops/elementwise.h"
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
    EditState state{.stream = {}, .noise = {seed, 0}, .encoder = {}, .decoder = {}};
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
  EditState state{.stream = {}, .noise = {7, 0}, .encoder = {}, .decoder = {}};
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

TEST_CASE("an editor over a video autoencoder: streams, whole clips and saved states agree") {
  const Json half = {
      {"width", 8}, {"mid_layers", 1}, {"stages", {{{"layers", 1}, {"stride", {2, 2, 2}}, {"width", 8}}}}};
  CreekVae vae(read_creek_vae_config(
      Fields({{"name", "tiny"}, {"latent_channels", 4}, {"patch", 2}, {"encoder", half}, {"decoder", half}},
             "test")));
  Rng rng{31};
  vae.vae.initialise(rng);
  vae.vae.latents_mean.fill(0);
  vae.vae.latents_std.fill(1);
  EditModelConfig config = tiny_config();
  config.dit.latent_channels = 4;
  config.patch = 0;
  config.prediction = "source_residual";
  config.first_chunk_frames = 5;
  config.autoencoder = "../vae";
  EditModel model(config);
  model.initialise(rng);
  const TempDir dir;
  std::filesystem::create_directories(dir / "model");
  model.save(dir / "model");
  vae.save(dir / "vae");
  const Editor editor = Editor::load(dir / "model");
  CHECK(editor.size_multiple() == 4);
  CHECK(editor.first_chunk_frames() == 9);
  CHECK(editor.chunk_frames() == 6);
  const Tensor clip = frames(21, 5);
  const Prompt prompt = editor.encode("make night");
  // In one step an untrained editor around the source gives the source.
  SampleOptions once;
  once.steps = {1000};
  EditState state{.stream = {}, .noise = {7, 0}, .encoder = {}, .decoder = {}};
  Tensors edited;
  for (const auto& [begin, end] : {std::pair{0, 9}, {9, 15}, {15, 21}}) {
    if (begin == 15) {
      save_state(state, dir / "state.safetensors");
      state = load_state(dir / "state.safetensors");
    }
    edited.push_back(editor.step(clip.slice(0, begin, end).contiguous(), prompt, state, once));
  }
  CHECK_THROWS_WITH_AS(editor.step(clip.slice(0, 0, 9).contiguous(), prompt, state),
                       doctest::Contains("takes u8 [6"), Error);
  const NoGrad off;
  const Tensor back = vae.vae.decode(vae.vae.encode(u8_to_unit(clip).unsqueeze(0) * 2.0 - 1.0), true);
  const Tensor want = unit_to_u8((back.select(0, 0) * 0.5 + 0.5).contiguous());
  const auto a = cat(edited, 0).to_vector(), b = want.to_vector();
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  CHECK(most <= 1);  // rounding to 8 bits
  CHECK_THROWS_WITH_AS(Editor(EditModel::load(dir / "model")), doctest::Contains("needs its"), Error);
}
