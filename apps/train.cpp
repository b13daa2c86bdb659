// rivulet train: trains an editor from one JSON file, or goes on where the last run stopped. (Autoencoders:
// apps/train_vae.cpp; the stages that make a few-step editor of latents: apps/train_stages.cpp.)
#include <filesystem>
#include <iostream>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/train_data.h"
#include "ops/image_io.h"
#include "train/edit_samples.h"
#include "train/edit_training.h"

namespace rivulet {
namespace {

constexpr int64_t kSheetRows = 8;
}  // namespace

int run_train(const TrainOptions& options) {
  TrainConfig config = read_train_config(options.config);
  if (options.steps > 0) config.steps = options.steps;
  if (config.task == "vae" || config.task == "vae_distill") return run_train_vae(options, config);
  if (config.task != "edit") return run_train_stage(options, config);
  const RenderedData data = read_rendered_data(Fields(config.data, options.config + ": data"), config);
  EditModel model(trained_model_config(config, options.config), device_named(options.device));
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
    shown.push_back(data.renderer.sample(kShownSamples + i, data.sizes[0]));
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
