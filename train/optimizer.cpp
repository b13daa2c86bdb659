#include "train/optimizer.h"

#include <fnmatch.h>

#include <cmath>

#include "ops/optim.h"

namespace rivulet {

double grad_norm(const NamedTensors& params) {
  double sum = 0;
  for (const auto& [name, param] : params)
    if (const Tensor g = param.grad()) sum += sum_of_squares(g);
  return std::sqrt(sum);
}

double clip_scale(double norm, double max_norm) {
  return max_norm > 0 && norm > max_norm ? max_norm / norm : 1;
}

void zero_grad(const NamedTensors& params) {
  for (const auto& [name, param] : params)
    if (param.autograd()) param.set_grad({});
}

AdamW::AdamW(NamedTensors params, AdamWOptions options) : options_(std::move(options)) {
  std::vector<bool> used(options_.groups.size());
  for (auto& [name, param] : params) {
    const DType t = param.dtype();
    check(t == DType::f32 || is_half(t), "AdamW: parameter ", name, " is ", t, ", needs f32, bf16 or f16");
    check(param.is_contiguous(), "AdamW: parameter ", name, " is not dense");
    Slot slot{
        name, param, param, zeros(param.shape(), DType::f32, param.device()), {}, 1, options_.weight_decay};
    slot.v = zeros_like(slot.m);
    if (t != DType::f32) slot.master = param.detach().to(DType::f32);
    for (size_t i = 0; i < options_.groups.size(); ++i) {
      const ParamGroup& group = options_.groups[i];
      if (fnmatch(group.pattern.c_str(), name.c_str(), 0) != 0) continue;
      slot.lr_scale = group.lr_scale;
      slot.weight_decay = group.weight_decay.value_or(options_.weight_decay);
      used[i] = true;
      break;
    }
    slots_.push_back(std::move(slot));
  }
  for (size_t i = 0; i < used.size(); ++i)
    check(used[i], "AdamW: group ", i, " with the pattern \"", options_.groups[i].pattern,
          "\" decides for no parameter");
}

void AdamW::step(double lr, double grad_scale) {
  NoGrad off;
  ++count_;
  for (Slot& s : slots_) {
    const Tensor g = s.param.grad();
    if (!g || s.lr_scale == 0) continue;
    adamw_update(s.master, g, s.m, s.v,
                 {.lr = lr * s.lr_scale,
                  .beta1 = options_.beta1,
                  .beta2 = options_.beta2,
                  .eps = options_.eps,
                  .weight_decay = s.weight_decay,
                  .count = count_,
                  .grad_scale = grad_scale});
    if (s.param.dtype() != DType::f32) s.param.copy_from(s.master);
  }
}

void AdamW::round_masters() const {
  NoGrad off;
  for (const Slot& s : slots_)
    if (s.param.dtype() != DType::f32) s.param.copy_from(s.master);
}

NamedTensors AdamW::masters() const {
  NamedTensors list;
  for (const Slot& s : slots_) list.emplace_back(s.name, s.master);
  return list;
}

NamedTensors AdamW::state() const {
  NamedTensors list;
  for (const Slot& s : slots_) {
    list.emplace_back("m." + s.name, s.m);
    list.emplace_back("v." + s.name, s.v);
    if (s.param.dtype() != DType::f32) list.emplace_back("master." + s.name, s.master);
  }
  return list;
}

}  // namespace rivulet
