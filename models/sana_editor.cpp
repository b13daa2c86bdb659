#include "models/sana_editor.h"

#include <chrono>
#include <cmath>

#include "models/ltx2_vae/names.h"
#include "models/released.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tensor/cuda.h"

namespace rivulet {
namespace {

class Laps {
 public:
  explicit Laps(Device device) : device_(device) { lap(); }
  double lap() {
    synchronize(device_);
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  Device device_;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace

void load_vae(PackedVae& into, const std::string& path, bool remap) {
  const WeightFile file = open_weights(path);
  const auto tensors = ltx2_vae_tensors(file);
  VideoVae vae(into.config(), Device::meta);
  NamedShapes wanted;
  for_each_tensor(vae, [&](const std::string& name, Tensor& t) { wanted[name] = t.shape(); });
  const std::string problems = misfits(tensors, wanted);
  check(problems.empty(), path, ": does not fit the autoencoder:", problems);
  const NoGrad off;
  // A copy, since the remap writes.
  for_each_tensor(vae, [&](const std::string& name, Tensor& t) {
    const Tensor& stored = tensors.at(name);
    const Tensor there(stored.shape(), stored.dtype(), into.device());
    there.copy_from(stored.to(into.device()));
    t = there;
    file.forget(stored);
  });
  if (remap) remap_to_causal(vae.decoder);
  into.copy_from(vae);
}

SanaWeights SanaWeights::load(const std::string& models, const DitConfig& config, DType dtype,
                              Device device) {
  const ReleasedModel transformer = released_model("sana-streaming-2b"),
                      causal = released_model("ltx2-vae-causal"), both_ways = released_model("ltx2-vae");
  const std::string dit_path = find_released(transformer, models);
  const bool remap = !is_there(causal, models) && is_there(both_ways, models);
  const std::string vae_path = find_released(remap ? both_ways : causal, models);
  SanaWeights w(config, ltx2_vae_config(), dtype, device);
  const WeightFile file = open_weights(dit_path);
  load_dit(w.dit.dit, file);
  load_vae(w.vae, vae_path, remap);
  if (file.metadata.count("weights")) w.notes += dit_path + ": " + file.metadata.at("weights") + "\n";
  if (remap) w.notes += vae_path + ": made causal by remapping alone, which costs quality\n";
  return w;
}

SanaEditor::SanaEditor(const SanaWeights& weights, const SanaOptions& o)
    : weights_(weights),
      options_(o),
      stream_(weights.dit, {.height = o.height / weights.vae.config().spatial(),
                            .width = o.width / weights.vae.config().spatial(),
                            .first_frames = o.first_latents,
                            .steps = o.steps}),
      vae_(weights.vae, {.height = o.height, .width = o.width}),
      rng_{o.seed} {
  check_steps(o.steps);
  check(weights.dit.dit.config().latent_channels == weights.vae.config().latent_channels,
        "sana editor: latents of ", weights.vae.config().latent_channels, " channels for a transformer of ",
        weights.dit.dit.config().latent_channels);
}

int64_t SanaEditor::next_frames() const {
  const int64_t latents = stream_.next_frames();
  return stream_.chunks() == 0 ? weights_.vae.config().frames_of(latents)
                               : latents * weights_.vae.config().temporal();
}

Tensor SanaEditor::denoise(const Tensor& source, SanaTimes& times) {
  Laps laps(weights_.dit.device());
  const Tensor noise = randn(source.shape(), rng_, DType::f32, source.device());
  stream_.begin_chunk(source);
  size_t step = 0;
  const auto velocity = [&](const Tensor& x, double, double) {
    const bool last = step + 1 == options_.steps.size();
    return stream_.velocity(x, step++, last && options_.efficient_cache);
  };
  const Tensor latents = sample(velocity, noise, {.steps = options_.steps, .renoise = false}, rng_);
  // Anything not finite would stay in the memory and spoil the rest of the stream.
  check(std::isfinite(sum(abs(latents), {0, 1, 2, 3, 4}).item()),
        "sana editor: the network gave values that are not finite in chunk ", stream_.chunks());
  times.denoise = laps.lap();
  if (options_.efficient_cache)
    stream_.end_chunk();
  else
    stream_.end_chunk(latents);
  times.cache = laps.lap();
  return latents;
}

Tensor SanaEditor::step(const Tensor& frames) {
  check(frames.dtype() == DType::u8 &&
            frames.shape() == Shape{next_frames(), options_.height, options_.width, 3},
        "sana editor: frames of ", frames.dtype(), " ", frames.shape(), ", the next chunk takes u8 [",
        next_frames(), ", ", options_.height, ", ", options_.width, ", 3]");
  const NoGrad off;
  SanaTimes times;
  Laps laps(weights_.dit.device());
  const Tensor source = vae_.encode(frames.to(weights_.vae.device()));
  times.encode = laps.lap();
  const Tensor latents = denoise(source, times);
  laps.lap();
  const Tensor edited = vae_.decode(latents).to(Device::cpu);
  times.decode = laps.lap();
  times_.push_back(times);
  return edited;
}

}  // namespace rivulet
