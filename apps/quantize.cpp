// rivulet quantize: a transformer's weights as a policy keeps them, in one file that loads by mapping it.
#include <cstdio>
#include <filesystem>

#include "apps/commands.h"
#include "models/edit_model.h"
#include "models/sana_streaming/fused_dit.h"

namespace rivulet {
namespace {

FusedDit source_of(const QuantizeOptions& o) {
  const Device device = device_named(o.device);
  if (o.model == "sana-streaming-2b") {
    check(o.random_weights,
          "quantize: the weights of sana-streaming-2b are not here: name a model folder, or ask for "
          "--random-weights");
    FusedDit model(DitConfig{}, DType::bf16, device);
    Rng rng{1};
    model.fill_random(rng);
    return model;
  }
  EditModel zoo = EditModel::load(o.model);
  FusedDit model(zoo.config().dit, DType::f32, device);
  model.copy_from(zoo.dit);
  return model;
}

}  // namespace

int run_quantize(const QuantizeOptions& o) {
  const Policy policy = Policy::read(o.policy);
  FusedDit model = source_of(o);
  const int64_t before = model.weight_bytes();
  model.pack(policy);
  model.save(o.out);
  const FusedDit back = FusedDit::load(o.out, Device::cpu);
  check(back.weight_bytes() == model.weight_bytes(), o.out, ": ", back.weight_bytes(),
        " bytes of weights came back of ", model.weight_bytes());
  std::printf("%s under %s: %.3f MB of weights in %s, now %.3f MB; the file has %.3f MB\n", o.model.c_str(),
              policy.name.c_str(), double(before) * 1e-6, name_of(model.dtype()),
              double(back.weight_bytes()) * 1e-6, double(std::filesystem::file_size(o.out)) * 1e-6);
  return 0;
}

}  // namespace rivulet
