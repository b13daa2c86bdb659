#include "nn/module.h"

namespace rivulet {

void load_tensors(const NamedTensors& into, const SafeTensors& file, const std::string& prefix) {
  std::string problems;
  for (const auto& [name, t] : into) {
    const std::string full = prefix + name;
    std::ostringstream line;
    if (!file.contains(full))
      line << "\n  missing " << full << " " << t.shape();
    else if (file.get(full).shape() != t.shape())
      line << "\n  " << full << " has shape " << file.get(full).shape() << ", the model needs " << t.shape();
    problems += line.str();
  }
  check(problems.empty(), file.path(), ": does not fit the model:", problems);
  const NoGrad off;
  for (const auto& [name, t] : into) t.copy_from(file.get(prefix + name));
}

int64_t count_elements(const NamedTensors& tensors) {
  int64_t n = 0;
  for (const auto& [name, t] : tensors) n += t.numel();
  return n;
}

void set_requires_grad(const NamedTensors& tensors, bool on) {
  for (auto [name, t] : tensors) t.set_requires_grad(on);
}

}  // namespace rivulet
