// rivulet train: trains an editor from one JSON file, or goes on where the last run stopped.
#include <filesystem>
#include <iostream>

#include "apps/commands.h"
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

ShapeEdit renderer(const TrainConfig& config, const std::string& source) {
  Fields fields(config.data, source + ": data");
  std::string path;
  fields.optional("footage", path);
  Fields mix = fields.object("mix");
  fields.done();
  std::shared_ptr<const Footage> footage;
  if (!path.empty()) footage = std::make_shared<const Footage>(Footage::open(path));
  return ShapeEdit(ShapeEditConfig::read(mix), footage);
}

}  // namespace

int run_train(const TrainOptions& options) {
  TrainConfig config = read_train_config(options.config);
  if (options.steps > 0) config.steps = options.steps;
  const ShapeEdit data = renderer(config, options.config);
  EditModel model(model_config(config, options.config), device_named(options.device));
  config.model = to_json(model.config());
  Rng start{uint64_t(config.seed)};
  model.initialise(start);
  if (!options.init.empty())
    load_tensors(named_tensors(model), SafeTensors(options.init + "/weights.safetensors"));

  const ClipSize size{config.frames, config.height, config.width};
  const auto pair = [&](int64_t index) {
    const Sample s = data.sample(index, size);
    return EditPair{model.codec().encode(s.source), model.codec().encode(s.target), s.instruction};
  };
  EditTraining training(model, config, pair, options.workers);
  Trainer trainer(config, named_tensors(model),
                  [&](int64_t step, int64_t micro, Rng& rng) { return training.loss(step, micro, rng); });
  std::filesystem::create_directories(config.dir);
  if (!options.fresh && trainer.resume_latest())
    std::cout << "resuming after step " << trainer.steps_done() << " of " << config.steps << "\n";
  std::vector<Sample> shown;
  for (int64_t i = 0; i < kSheetRows; ++i) shown.push_back(data.sample(kSheetFirst + i, size));
  trainer.on_sample([&](int64_t steps_done) {
    const EmaScope average(trainer.ema(), trainer.params());
    write_png(config.dir + "/sample_" + std::to_string(steps_done) + ".png",
              sample_sheet(Editor(model), shown, uint64_t(config.seed)));
  });

  const Interrupt interrupt;
  const bool finished = trainer.run(&std::cout, &interrupt.flag());
  const EmaScope average(trainer.ema(), trainer.params());
  model.save(config.dir + "/model");
  std::cout << (finished ? "finished" : "stopped") << " after step " << trainer.steps_done() << ", loss "
            << trainer.last_loss() << "; the model is in " << config.dir << "/model\n";
  return finished ? 0 : 130;
}

}  // namespace rivulet
