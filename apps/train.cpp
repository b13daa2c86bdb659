// rivulet train: trains an editor from one JSON file, or goes on where the last run stopped. (Autoencoders:
// apps/train_vae.cpp.)
#include <filesystem>
#include <iostream>

#include "apps/commands.h"
#include "apps/frames.h"
#include "apps/interrupt.h"
#include "ops/image_io.h"
#include "train/edit_samples.h"
#include "train/edit_training.h"

namespace rivulet {
namespace {

constexpr int64_t kSheetRows = 8;
constexpr int64_t kSheetFirst = int64_t(1) << 40;  // indices that training never reaches

// The vocabulary may be left out of a training config: it is then everything that the renderer can say.
EditModelConfig model_config(const TrainConfig& config, const std::string& source) {
  Json model = config.model;
  if (!model.contains("vocabulary")) model["vocabulary"] = instruction_vocabulary().to_json();
  return read_edit_model_config(Fields(model, source + ": model"));
}

// Where samples come from: {"footage": FILE, "mix": {...}, "sizes": ["256x144", ...]}. Batch k is rendered at
// size k of the list, round and round; without a list at the config's clip size.
struct Source {
  ShapeEdit renderer;
  std::vector<ClipSize> sizes;
  const ClipSize& size_of_batch(int64_t k) const { return sizes[size_t(k) % sizes.size()]; }
};

Source read_source(const TrainConfig& config, const std::string& name) {
  Fields fields(config.data, name + ": data");
  std::string path;
  fields.optional("footage", path);
  std::vector<std::string> sizes;
  fields.optional("sizes", sizes);
  Fields mix = fields.object("mix");
  fields.done();
  std::shared_ptr<const Footage> footage;
  if (!path.empty()) footage = std::make_shared<const Footage>(Footage::open(path));
  Source source{ShapeEdit(ShapeEditConfig::read(mix), footage), {}};
  for (const std::string& text : sizes) {
    const FrameSize size = parse_size(text);
    source.sizes.push_back({config.frames, size.height, size.width});
  }
  if (sizes.empty()) source.sizes.push_back({config.frames, config.height, config.width});
  return source;
}

}  // namespace

int run_train(const TrainOptions& options) {
  TrainConfig config = read_train_config(options.config);
  if (options.steps > 0) config.steps = options.steps;
  if (config.task != "edit") return run_train_vae(options, config);
  const Source data = read_source(config, options.config);
  EditModel model(model_config(config, options.config), device_named(options.device));
  config.model = to_json(model.config());
  Rng start{uint64_t(config.seed)};
  model.initialise(start);
  if (!options.init.empty())
    load_tensors(named_tensors(model), SafeTensors(options.init + "/weights.safetensors"));

  const auto pair = [&](int64_t index) {
    const Sample s = data.renderer.sample(index, data.size_of_batch(index / config.batch));
    return EditPair{model.codec().encode(s.source), model.codec().encode(s.target), s.instruction};
  };
  EditTraining training(model, config, pair, options.workers);
  Trainer trainer(config, named_tensors(model),
                  [&](int64_t step, int64_t micro, Rng& rng) { return training.loss(step, micro, rng); });
  std::filesystem::create_directories(config.dir);
  if (!options.fresh && trainer.resume_latest())
    std::cout << "resuming after step " << trainer.steps_done() << " of " << config.steps << "\n";
  std::vector<Sample> shown;
  for (int64_t i = 0; i < kSheetRows; ++i)
    shown.push_back(data.renderer.sample(kSheetFirst + i, data.sizes[0]));
  trainer.on_step([&](const NamedTensors& trained) { model.dit.bound_memory(trained, "dit."); });
  trainer.on_sample([&](int64_t steps_done) {
    const EmaScope average(trainer.ema(), trainer.params());
    write_png(config.dir + "/sample_" + std::to_string(steps_done) + ".png",
              sample_sheet(Editor(model), shown, uint64_t(config.seed)));
  });

  const Interrupt interrupt;
  const bool finished = trainer.run(&std::cout, &interrupt.flag());
  const EmaScope average(trainer.ema(), trainer.params());
  model.save(config.dir + "/model", DType::f16);  // half the size, and finer than 8-bit pixels
  std::cout << (finished ? "finished" : "stopped") << " after step " << trainer.steps_done() << ", loss "
            << trainer.last_loss() << "; the model is in " << config.dir << "/model\n";
  return finished ? 0 : 130;
}

}  // namespace rivulet
