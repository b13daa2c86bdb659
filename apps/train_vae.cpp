// rivulet train, for the tasks "vae" and "vae_distill".
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "models/creek_vae/creek_vae.h"
#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/image_io.h"
#include "ops/shape.h"
#include "train/footage.h"
#include "train/metrics.h"
#include "train/vae_training.h"

namespace rivulet {
namespace {

constexpr int64_t kShown = 6, kMeasured = 16;
constexpr uint64_t kDataStream = 0x51, kShownStream = 0x52;

// {"footage": FILE}: an archive that rivulet data pack has made.
Footage open_footage(const TrainConfig& config, const std::string& name) {
  Fields fields(config.data, name + ": data");
  std::string path;
  fields.required("footage", path);
  fields.done();
  return Footage::open(path);
}

// Clip `index` of a run, or of the clips that are looked at: it depends on the seed and the index alone.
Tensor clip_of(const Footage& footage, const TrainConfig& config, uint64_t stream, int64_t index) {
  Rng rng = Rng{uint64_t(config.seed)}.fork(stream).fork(uint64_t(index));
  return footage.crop(rng, config.frames, config.height, config.width);
}

// Real clips above their reconstructions, last frames side by side; prints the mean PSNR.
void show(const VideoVae& vae, const Footage& footage, const TrainConfig& config, int64_t steps) {
  Tensors columns;
  double total = 0;
  for (int64_t i = 0; i < kShown; ++i) {
    const Tensor clip = clip_of(footage, config, kShownStream, i);
    const Tensor input = clip.unsqueeze(0).to(vae.device()) * 2.0 - 1.0;
    const Tensor output = vae.decode(vae.encode(input), false).select(0, 0).to(Device::cpu) * 0.5 + 0.5;
    total += psnr(clamp(output, 0, 1), clip);
    const int64_t last = clip.dim(0) - 1;
    columns.push_back(cat(
        {unit_to_u8(clip.contiguous()).select(0, last), unit_to_u8(output.contiguous()).select(0, last)}, 0));
  }
  write_png(config.dir + "/sample_" + std::to_string(steps) + ".png", cat(columns, 1));
  std::printf("\nstep %lld: %.2f dB on %lld shown clips\n", static_cast<long long>(steps),
              total / double(kShown), static_cast<long long>(kShown));
}

}  // namespace

int run_train_vae(const TrainOptions& options, TrainConfig config) {
  const Footage footage = open_footage(config, options.config);
  const bool distil = config.task == "vae_distill";
  CreekVae creek(read_creek_vae_config(Fields(config.model, options.config + ": model")),
                 device_named(options.device));
  VideoVae& vae = creek.vae;
  vae.compute = config.compute;
  check((config.frames - 1) % vae.config().temporal() == 0, options.config, ": clip.frames is ",
        config.frames, ", must be one more than a multiple of ", vae.config().temporal());
  check(!distil || !options.init.empty(), options.config,
        ": the task vae_distill needs --init, the model to start from");
  Rng start{uint64_t(config.seed)};
  vae.initialise(start);
  std::optional<CreekVae> teacher;
  if (!options.init.empty())
    load_tensors(named_tensors(vae), SafeTensors(options.init + "/weights.safetensors"));
  if (distil) {
    teacher.emplace(CreekVae::load(options.init, vae.device()));
    check(!teacher->config.vae.decoder_causal && vae.config().decoder_causal, options.config,
          ": vae_distill makes a causal decoder (decoder_causal true) of one that is not (", options.init,
          ")");
    teacher->vae.compute = config.compute;
    remap_to_causal(vae.decoder);
  }
  config.model = to_json(creek.config);

  VaeTraining training(
      vae, config, [&](int64_t index) { return clip_of(footage, config, kDataStream, index); },
      options.workers, teacher ? &teacher->vae : nullptr);
  Trainer trainer(config, trained_tensors(vae, config),
                  [&](int64_t step, int64_t micro, Rng& rng) { return training.loss(step, micro, rng); });
  std::filesystem::create_directories(config.dir);
  if (!options.fresh && trainer.resume_latest())
    std::cout << "resuming after step " << trainer.steps_done() << " of " << config.steps << "\n";
  trainer.on_sample([&](int64_t steps_done) {
    const EmaScope average(trainer.ema(), trainer.params());
    show(vae, footage, config, steps_done);
  });

  const Interrupt interrupt;
  const bool finished = trainer.run(&std::cout, &interrupt.flag());
  const EmaScope average(trainer.ema(), trainer.params());
  if (!distil) {  // a new decoder keeps the latents of the old one
    Tensors clips;
    for (int64_t i = 0; i < kMeasured; ++i) clips.push_back(clip_of(footage, config, kDataStream, i));
    measure_latents(vae, clips);
  }
  creek.save(config.dir + "/model", DType::f16);
  std::cout << (finished ? "finished" : "stopped") << " after step " << trainer.steps_done() << ", loss "
            << trainer.last_loss() << "; the model is in " << config.dir << "/model\n";
  return finished ? 0 : 130;
}

}  // namespace rivulet
