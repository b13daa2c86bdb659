#include "models/sana_clip.h"

#include <cmath>

#include "models/ltx2_vae/names.h"
#include "models/released.h"
#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/reduce.h"
#include "ops/shape.h"

namespace rivulet {

SanaClipEditor SanaClipEditor::load(const std::string& models, DType dtype, Device device) {
  DitConfig config;
  config.variant = "bidirectional";
  const ReleasedModel transformer = released_model("sana-bidirectional-2b"),
                      autoencoder = released_model("ltx2-vae");
  const std::string dit_path = find_released(transformer, models),
                    vae_path = find_released(autoencoder, models);
  SanaClipEditor e{Dit(config, Device::meta), VideoVae(ltx2_vae_config(), device)};
  for_each_tensor(e.dit, [&](const std::string&, Tensor& t) { t = Tensor(t.shape(), dtype, device); });
  load_dit(e.dit, open_weights(dit_path));
  const WeightFile file = open_weights(vae_path);
  const auto tensors = fitting_tensors(autoencoder, file);
  const NoGrad off;
  for_each_tensor(e.vae, [&](const std::string& name, Tensor& t) {
    t.copy_from(tensors.at(name).to(device));
    file.forget(tensors.at(name));
  });
  pack_convs(e.vae);
  return e;
}

Tensor SanaClipEditor::edit(const Tensor& frames, const TextEmbedding& prompt, const TextEmbedding& negative,
                            const ClipSampling& sampling, uint64_t seed) const {
  check(frames.dtype() == DType::u8 && frames.dims() == 4 && frames.dim(0) % vae.config().temporal() == 1,
        "sana clip: frames of ", frames.dtype(), " ", frames.shape(), ", a clip has 1 + 8 k");
  const NoGrad off;
  const Device device = vae.device();
  const DType dtype = dit.final_linear.weight.dtype();
  const Tensor source = vae.encode((u8_to_unit(frames) * 2.0 - 1.0).unsqueeze(0).to(device));
  const auto context = [&](const TextEmbedding& text) {
    return dit.text_context(text.rows.to(device).to(dtype), text.mask.to(device));
  };
  const auto asked = [&](const TextContext& text) {
    return [&](const Tensor& x, double t, double) {
      return dit(cat({x, source}, 1).to(dtype), full({1}, t, DType::f32, device), text).to(DType::f32);
    };
  };
  const TextContext wanted = context(prompt),
                    unwanted = sampling.guidance == 1 ? TextContext{} : context(negative);
  Rng rng{seed};
  const Tensor noise = randn(source.shape(), rng, DType::f32, device);
  const Tensor latents = sample_dpm(guided(asked(wanted), asked(unwanted), sampling.guidance), noise,
                                    clip_levels(sampling.steps, sampling.shift));
  check(std::isfinite(sum(abs(latents), {0, 1, 2, 3, 4}).item()),
        "sana clip: the network gave values that are not finite");
  return unit_to_u8((vae.decode(latents, false).select(0, 0) * 0.5 + 0.5).contiguous().to(Device::cpu));
}

}  // namespace rivulet
