// The stages of training in miniature: the source is wired to the loss, and all of them run one after the
// other from JSON, on the latents of a tiny autoencoder.
#include <doctest/doctest.h>

#include <filesystem>

#include "apps/commands.h"
#include "models/creek_vae/creek_vae.h"
#include "tests/fixtures.h"
#include "tests/recipe_fixtures.h"
#include "train/self_forcing.h"
#include "train/shape_edit.h"
#include "train/stage_samples.h"

using namespace rivulet;

namespace {

namespace fs = std::filesystem;

// Flow matching at one level with targets that are random numbers; returns the mean loss of the last steps.
double loss_after(int steps, bool copies, const std::string& prediction) {
  EditModelConfig config = tiny_latent_config("bidirectional");
  config.prediction = prediction;
  EditModel model(config);
  Rng start{1};
  model.initialise(start);
  const NamedTensors params = named_tensors(model);
  set_requires_grad(params, true);
  AdamW adam(params, {});
  Rng rng{2};
  double total = 0;
  for (int step = 0; step < steps; ++step) {
    const Shape shape{4, 4, 3, 2, 3};
    const Tensor x0 = randn(shape, rng), eps = randn(shape, rng);
    const Tensor source = copies ? x0 : zeros(shape);
    const std::vector<std::string> texts(4, "keep");
    const Tensor loss = clip_flow_loss(net_of(model), x0, eps, source, levels_of(4, 0.9), levels_of(4, 900),
                                       model.encode(texts));
    zero_grad(params);
    backward(loss);
    adam.step(3e-3, clip_scale(grad_norm(params), 1));
    if (step >= steps - 20) total += loss.item() / 20;
  }
  return total;
}

Json tiny_vae_config() {
  return {
      {"name", "tiny"},
      {"latent_channels", 4},
      {"patch", 2},
      {"decoder_causal", true},
      {"encoder",
       {{"width", 8}, {"mid_layers", 0}, {"stages", {{{"layers", 0}, {"stride", {2, 2, 2}}, {"width", 8}}}}}},
      {"decoder",
       {{"width", 8},
        {"mid_layers", 0},
        {"stages", {{{"layers", 0}, {"stride", {2, 2, 2}}, {"width", 8}}}}}}};
}

class Miniature {
 public:
  explicit Miniature(const std::string& dir) : dir_(dir) {
    CreekVae vae(read_creek_vae_config(Fields(tiny_vae_config(), "test")));
    Rng rng{3};
    vae.vae.initialise(rng);
    vae.vae.latents_mean.fill(0);
    vae.vae.latents_std.fill(1);
    vae.save(dir + "/vae");
  }
  // Runs a stage of `steps` steps; `latents` are those of its clips.
  int run(const std::string& name, const std::string& task, int64_t steps, int64_t latents, const Json& stage,
          const std::string& compute = "f32", int64_t stop_after = 0) const {
    Json model = {{"name", "tiny"},
                  {"dit",
                   {{"variant", task == "flow" ? "bidirectional" : "streaming"},
                    {"depth", 2},
                    {"width", 16},
                    {"heads", 2},
                    {"softmax_blocks", {1}},
                    {"latent_channels", 4},
                    {"caption_channels", 8}}},
                  {"prediction", "source_residual"},
                  {"patch", 0},
                  {"first_chunk_frames", 5},
                  {"instruction_tokens", 16}};
    const Json config = {{"task", task},
                         {"steps", steps},
                         {"batch", 2},
                         {"seed", 7},
                         {"compute", compute},
                         {"optimizer", {{"lr", 1e-3}}},
                         {"ema", {{"decay", 0.9}, {"start_step", 0}}},
                         {"clip", {{"width", 16}, {"height", 16}, {"frames", 2 * latents - 1}}},
                         {"data", {{"vae", dir_ + "/vae"}, {"mix", {{"look", 1}, {"recolour", 0}}}}},
                         {"stage", stage},
                         {"model", model},
                         {"output", {{"dir", at(name)}, {"sample_every", steps}}}};
    const std::string path = dir_ + "/" + name + ".json";
    write_file(path, config.dump());
    TrainOptions options;
    options.config = path;
    options.steps = stop_after;
    return run_train(options);
  }
  std::string at(const std::string& name) const { return dir_ + "/" + name; }
  std::vector<double> weights(const std::string& folder) const {
    std::vector<double> all;
    const SafeTensors file(at(folder) + "/weights.safetensors");
    for (const auto& [name, t] : file.tensors())
      for (double v : t.to_vector()) all.push_back(v);
    return all;
  }

 private:
  std::string dir_;
};

}  // namespace

TEST_CASE("a target that is the source is learnt from it, and not without it") {
  const double with = loss_after(250, true, "velocity"), without = loss_after(250, false, "velocity");
  // Without the source nothing is better than 1 / (0.9^2 + 0.1^2).
  CHECK(without > 1.1);
  CHECK(with < 0.4);
  CHECK(loss_after(60, true, "source_residual") < 0.1);
}

TEST_CASE(
    "all stages, one after the other: flow, ODE initialisation, short and long self-forcing, cycle-reverse") {
  const TempDir dir;
  const Miniature world(dir.path);
  CHECK(world.run("a", "flow", 2, 11, Json::object(), "bf16") == 0);
  CHECK(world.run("b", "ode", 2, 11,
                  {{"teacher", world.at("a/model")},
                   {"trajectories", world.at("paths")},
                   {"count", 4},
                   {"teacher_batch", 2},
                   {"solver_steps", 4},
                   {"recompute", true}}) == 0);
  CHECK(fs::exists(world.at("paths/shard_1.safetensors")));
  CHECK(world.run("a2", "flow", 2, 11, Json::object(), "bf16", 1) == 0);
  CHECK(world.run("a2", "flow", 2, 11, Json::object(), "bf16") == 0);
  CHECK(world.weights("a2/model") == world.weights("a/model"));
  CHECK(world.run("c1", "self_forcing", 5, 11,
                  {{"student", world.at("b/model")},
                   {"real", world.at("a/model")},
                   {"fake", world.at("a/model")},
                   {"critic", {{"lr", 1e-3}}}}) == 0);
  const auto longer = [&](const std::string& kind) -> Json {
    return {{"student", world.at("c1/student")},
            {"real", world.at("a/model")},
            {"fake", world.at("c1/fake")},
            {"recompute", true},
            {"reverse", {{"kind", kind}, {"identity_instruction", "keep"}}}};
  };
  for (const std::string kind : {"none", "identity", "wrong"})
    CHECK(world.run("d_" + kind, "self_forcing", 2, 20, longer(kind), "bf16") == 0);
  CHECK(world.run("d", "self_forcing", 6, 20, longer("paper"), "bf16") == 0);
  for (const std::string out : {"a/model", "b/model", "c1/model", "c1/fake", "d/student"})
    CHECK(fs::exists(world.at(out)));
  CHECK(fs::exists(world.at("d/sample_6.png")));
  CHECK_FALSE(world.weights("d/student") == world.weights("c1/student"));
  // Stopped in the middle of a stream and begun again from its folder: the same weights.
  CHECK(world.run("again", "self_forcing", 6, 20, longer("paper"), "bf16", 3) == 0);
  CHECK(world.run("again", "self_forcing", 6, 20, longer("paper"), "bf16") == 0);
  CHECK(world.weights("again/student") == world.weights("d/student"));
  CHECK(world.weights("again/fake") == world.weights("d/fake"));
  CHECK_THROWS_WITH_AS(world.run("e", "self_forcing", 2, 20, {{"real", "x"}, {"fake", "y"}}),
                       doctest::Contains("stage.student"), Error);
}

TEST_CASE("creek: 20 to 40 million parameters, and stages that can be read") {
  const std::string dir = std::string(RIVULET_SOURCE_DIR) + "/models/creek/";
  int64_t parameters = 0;
  for (const std::string stage : {"a", "b", "c", "d", "e"}) {
    CAPTURE(stage);
    const TrainConfig c = read_train_config(dir + "train_" + stage + ".json");
    Json model = c.model;
    model["vocabulary"] = instruction_vocabulary().to_json();
    EditModel creek(read_edit_model_config(Fields(model, stage)), Device::meta);
    parameters = count_elements(named_tensors(creek));
    CHECK(parameters > 20'000'000);
    CHECK(parameters < 40'000'000);
    CHECK(creek.config().dit.variant == (c.task == "flow" ? "bidirectional" : "streaming"));
    CHECK(c.compute == DType::bf16);
    if (c.task == "ode") CHECK(read_ode_options(Fields(c.stage, stage), c.compute).solver.steps.size() == 4);
    if (c.task != "self_forcing") continue;
    const SelfForcingOptions o = read_self_forcing_options(Fields(c.stage, stage), c.compute);
    CHECK(creek.config().vocabulary.encode(o.identity_instruction).unknown.empty());
    const int64_t latents = (c.frames - 1) / 4 + 1;
    CHECK(clips_of(latents, o.rules).size() == (stage == "c" ? 1 : stage == "d" ? 6 : 13));
    Fields data(c.data, stage);
    const ShapeEdit renderer(ShapeEditConfig::read(data.object("mix")));
    for (int64_t i = 0; i < 60; ++i) CHECK_FALSE(renderer.sample(i, {1, 16, 16}).inverse_instruction.empty());
  }
}
