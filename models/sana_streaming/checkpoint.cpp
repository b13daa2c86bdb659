#include "models/sana_streaming/checkpoint.h"

#include <cmath>

namespace rivulet {
namespace {

bool ends_with(const std::string& s, const std::string& tail) {
  return s.size() >= tail.size() && s.compare(s.size() - tail.size(), tail.size(), tail) == 0;
}

std::string without(const std::string& name, const std::string& prefix) {
  return name.compare(0, prefix.size(), prefix) == 0 ? name.substr(prefix.size()) : name;
}

}  // namespace

NamedShapes dit_shapes(const DitConfig& config) {
  Dit dit(config, Device::meta);
  NamedShapes out;
  for_each_tensor(dit, [&](const std::string& name, Tensor& t) { out[name] = t.shape(); });
  return out;
}

NamedShapes unread_dit_shapes(const DitConfig& config) {
  return {{"pos_embed", {1, 484, config.width}}, {"y_embedder.y_embedding", {300, config.caption_channels}}};
}

std::map<std::string, Tensor> dit_tensors(const WeightFile& file) {
  if (file.has_state_dict) return file.tensors;
  std::map<std::string, Tensor> out;
  for (const auto& [name, t] : file.tensors) {
    const std::string own = without(without(name, "model."), "module.");
    check(out.emplace(own, t).second, file.path, ": tensor ", own, " stands there under two names");
  }
  return out;
}

void load_dit(Dit& dit, const WeightFile& file) {
  const auto tensors = dit_tensors(file);
  const std::string problems = misfits(tensors, dit_shapes(dit.config()), unread_dit_shapes(dit.config()));
  check(problems.empty(), file.path, ": does not fit the ", dit.config().variant, " transformer:", problems);
  const NoGrad off;
  for_each_tensor(dit, [&](const std::string& name, Tensor& t) {
    const Tensor& stored = tensors.at(name);
    Tensor value = stored.to(t.device());
    if (value.numel() == 3 * t.numel()) value = value.select(2, 1);  // the tap that is read
    t.copy_from(value.reshape(t.shape()));
    file.forget(stored);
  });
}

RandomWeight random_dit_weight(const std::string& name, const Shape& shape, int64_t depth) {
  if (ends_with(name, "norm.weight")) return {1, 0.02};
  if (ends_with(name, "scale_shift_table")) return {0, 0.3};
  if (ends_with(name, "dt_bias")) return {-3, 0.02};
  if (shape.size() < 2) return {0, 0.02};
  const bool last = ends_with(name, "attn.proj.weight") || ends_with(name, "point_conv.conv.weight") ||
                    ends_with(name, "t_conv.weight");
  const double branch = 1 / std::sqrt(3.0 * double(depth));
  return {0, (last ? branch : 1) / std::sqrt(double(shape.numel() / shape[0]))};
}

}  // namespace rivulet
