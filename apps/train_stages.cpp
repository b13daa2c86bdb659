// rivulet train, for the tasks "flow", "ode" and "self_forcing": the stages that make a few-step streaming
// editor on the latents of a video autoencoder (or on patches).
#include <cmath>
#include <filesystem>
#include <iostream>
#include <optional>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/train_data.h"
#include "models/creek_vae/creek_vae.h"
#include "ops/image_io.h"
#include "train/distill_trainer.h"
#include "train/progress.h"
#include "train/stage_samples.h"

namespace rivulet {
namespace {

constexpr int64_t kSheetRows = 6;

// Data and network of a stage. "data" of these tasks may also hold "vae": the folder of the autoencoder,
// needed unless the model works on patches.
struct Stage {
  TrainConfig config;
  EditModelConfig model_config;
  Device device;
  std::unique_ptr<CreekVae> vae;
  LatentSpace space;
  std::shared_ptr<const RenderedData> data;

  Stage(const TrainOptions& options, TrainConfig c)
      : config(std::move(c)),
        model_config(trained_model_config(config, options.config)),
        device(device_named(options.device)) {
    config.model = to_json(model_config);
    Json fields = config.data;
    if (model_config.patch > 0) {
      space = patch_space(PatchCodec(model_config.patch), device);
    } else {
      check(fields.contains("vae") && fields["vae"].is_string(), options.config,
            ": data.vae, the folder of the autoencoder, is missing");
      vae = std::make_unique<CreekVae>(CreekVae::load(fields["vae"].get<std::string>(), device));
      check(vae->vae.config().latent_channels == model_config.dit.latent_channels, options.config,
            ": the autoencoder has ", vae->vae.config().latent_channels, " channels, the model ",
            model_config.dit.latent_channels);
      vae->vae.compute = config.compute;
      space = vae_space(vae->vae);
      fields.erase("vae");
    }
    data = std::make_shared<const RenderedData>(
        read_rendered_data(Fields(fields, options.config + ": data"), config));
  }

  // Long sources come without their targets. One size: for what is stored in one shape.
  LatentBatches batches(int64_t batch, int workers, bool targets, bool one_size = false) const {
    const auto make = [data = data, batch, targets, one_size](int64_t index) {
      Sample s = data->renderer.sample(index, data->size_of_batch(one_size ? 0 : index / batch));
      if (!targets) s.target = {};
      return Example{s.source, s.target, s.mask, s.instruction, s.inverse_instruction};
    };
    return LatentBatches(make, space, batch, workers);
  }
  LatentBatch shown() const {
    const auto make = [data = data](int64_t index) {
      const Sample s = data->renderer.sample(kShownSamples + index, data->sizes[0]);
      return Example{s.source, s.target, s.mask, s.instruction, s.inverse_instruction};
    };
    return LatentBatches(make, space, kSheetRows).get(0);
  }
};

// A network on the device with the weights of a folder, or random ones.
std::unique_ptr<EditModel> network(const Stage& stage, const ComputeOptions& compute,
                                   const std::string& dir) {
  auto model = std::make_unique<EditModel>(stage.model_config, stage.device);
  if (dir.empty()) {
    Rng start{uint64_t(stage.config.seed)};
    model->initialise(start);
  } else {
    EditModel from = EditModel::load(dir);
    model->copy_from(from);
  }
  prepare(*model, compute);
  return model;
}

void save_values(const Stage& stage, const NamedTensors& values, const std::string& dir) {
  EditModel out(stage.model_config);
  const NamedTensors places = named_tensors(out);
  check(places.size() == values.size(), "train: ", values.size(), " trained tensors of ", places.size());
  for (size_t i = 0; i < places.size(); ++i)
    places[i].second.detach().copy_from(values[i].second.to(Device::cpu));
  std::filesystem::create_directories(dir);
  out.save(dir, DType::f16);
}

// Writes sample_<steps>.png with the average's weights, and says how near the targets are.
std::function<void(int64_t)> sampler(const Stage& stage, const EditModel& model, const Ema& ema,
                                     const NamedTensors& params, const StageSampling& sampling) {
  if (stage.config.sample_every == 0) return {};
  return [&, sampling, shown = stage.shown()](int64_t steps) {
    const EmaScope average(ema, params);
    const StageSheet sheet = stage_sheet(model, stage.space, shown, sampling, uint64_t(stage.config.seed));
    write_png(stage.config.dir + "/sample_" + std::to_string(steps) + ".png", sheet.pixels);
    std::cout << "\nstep " << steps << ": edit score " << sheet.score << " on " << kSheetRows
              << " held clips\n";
  };
}

int ended(const Stage& stage, bool finished, int64_t steps, double loss) {
  std::cout << (finished ? "finished" : "stopped") << " after step " << steps << ", loss " << loss
            << "; the model is in " << stage.config.dir << "/model\n";
  return finished ? 0 : 130;
}

template <class AnyTrainer>
void resume(AnyTrainer& trainer, const TrainOptions& options, const TrainConfig& config) {
  std::filesystem::create_directories(config.dir);
  if (!options.fresh && trainer.resume_latest())
    std::cout << "resuming after step " << trainer.steps_done() << " of " << config.steps << "\n";
}

// The loop of the stages with one network.
int train_one(const TrainOptions& options, const Stage& stage, EditModel& model, const StepFn& loss,
              const StageSampling& sampling, const Interrupt& interrupt) {
  Trainer trainer(stage.config, named_tensors(model), loss);
  resume(trainer, options, stage.config);
  trainer.on_step([&](const NamedTensors& trained) { model.dit.bound_memory(trained, "dit."); });
  trainer.on_sample(sampler(stage, model, trainer.ema(), trainer.params(), sampling));
  const bool finished = trainer.run(&std::cout, &interrupt.flag());
  save_values(stage, trainer.result(), stage.config.dir + "/model");
  return ended(stage, finished, trainer.steps_done(), trainer.last_loss());
}

int train_flow(const TrainOptions& options, const Stage& stage) {
  Fields fields(stage.config.stage, options.config + ": stage");
  const ComputeOptions compute = read_compute_options(fields, stage.config.compute);
  fields.done();
  const auto model = network(stage, compute, options.init);
  LatentBatches pairs = stage.batches(stage.config.batch, options.workers, true);
  FlowStage flow(*model, stage.config, pairs);
  const Interrupt interrupt;
  const auto loss = [&](int64_t step, int64_t micro, Rng& rng) { return flow.loss(step, micro, rng); };
  StageSampling sampling;
  sampling.streaming = false;
  return train_one(options, stage, *model, loss, sampling, interrupt);
}

int train_ode(const TrainOptions& options, const Stage& stage) {
  const OdeOptions ode =
      read_ode_options(Fields(stage.config.stage, options.config + ": stage"), stage.config.compute);
  const Interrupt interrupt;
  {
    const auto teacher = network(stage, ode.compute, ode.teacher);
    LatentBatches examples = stage.batches(ode.teacher_batch, options.workers, true, true);
    Progress progress("trajectories", ode.count, std::cout);
    if (!make_trajectories(*teacher, ode, examples, uint64_t(stage.config.seed), &interrupt.flag(),
                           [&](int64_t done) { progress.update(done); }))
      return 130;
    progress.finish();
  }
  const auto model = network(stage, ode.compute, options.init.empty() ? ode.teacher : options.init);
  OdeStage init(*model, stage.config, ode);
  const auto loss = [&](int64_t step, int64_t micro, Rng& rng) { return init.loss(step, micro, rng); };
  return train_one(options, stage, *model, loss, {}, interrupt);
}

int train_self_forcing(const TrainOptions& options, const Stage& stage) {
  const SelfForcingOptions forcing =
      read_self_forcing_options(Fields(stage.config.stage, options.config + ": stage"), stage.config.compute);
  const std::string student_dir = options.init.empty() ? forcing.student : options.init;
  check(!student_dir.empty(), options.config, ": stage.student, the folder to start from, is missing");
  const auto student = network(stage, forcing.compute, student_dir);
  const auto real = network(stage, {stage.config.compute, false}, forcing.real);
  const auto fake = network(stage, forcing.compute, forcing.fake);
  LatentBatches streams = stage.batches(stage.config.batch, options.workers, false);
  SelfForcing loop(role_of(*student), role_of(*real), role_of(*fake), forcing, streams,
                   stage.config.accumulate);
  DistillTrainer trainer(stage.config, forcing, loop, named_tensors(*student), named_tensors(*fake));
  resume(trainer, options, stage.config);
  trainer.on_step([&](const NamedTensors& trained) { student->dit.bound_memory(trained, "dit."); });
  StageSampling sampling;
  sampling.student.steps = forcing.steps;
  trainer.on_sample(sampler(stage, *student, trainer.ema(), trainer.params(), sampling));
  const Interrupt interrupt;
  const bool finished = trainer.run(&std::cout, &interrupt.flag());
  const std::string& dir = stage.config.dir;
  save_values(stage, trainer.ema().active() ? trainer.ema().average() : trainer.student_values(),
              dir + "/model");
  save_values(stage, trainer.student_values(), dir + "/student");
  save_values(stage, trainer.fake_values(), dir + "/fake");
  return ended(stage, finished, trainer.steps_done(), trainer.last_loss());
}

}  // namespace

int run_train_stage(const TrainOptions& options, TrainConfig config) {
  const Stage stage(options, std::move(config));
  if (stage.config.task == "flow") return train_flow(options, stage);
  if (stage.config.task == "ode") return train_ode(options, stage);
  return train_self_forcing(options, stage);
}

}  // namespace rivulet
