#include "quant/space.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace rivulet {
namespace {

// A t is told to the network in f32, so a pass is met by a little room around it.
constexpr double kRoom = 0.25;

}  // namespace

std::string PolicyUnit::name() const {
  std::ostringstream text;
  text << "b" << block << "." << name_of(layer);
  if (!all_t()) text << ".t" << std::round((t_low + t_high) / 2);
  return text.str();
}

PolicySpace::PolicySpace(int64_t depth, const std::vector<int64_t>& softmax_blocks,
                         const std::vector<Layer>& layers, const std::vector<Choice>& choices,
                         const std::vector<double>& times) {
  check(!layers.empty() && !choices.empty(), "policy search: nothing to choose");
  std::vector<Choice> all = {Choice{}};
  for (const Choice& c : choices)
    if (std::find(all.begin(), all.end(), c) == all.end()) all.push_back(c);
  for (int64_t block = 0; block < depth; ++block) {
    const bool softmax =
        std::find(softmax_blocks.begin(), softmax_blocks.end(), block) != softmax_blocks.end();
    for (const Layer layer : layers) {
      if (layer == Layer::scores && !softmax) continue;
      PolicyUnit unit{block, layer, 0, 1000, all};
      if (layer == Layer::scores) unit.choices = {Choice{}, Choice{Format::fp8}};
      if (times.empty() || layer == Layer::ca_kv) {
        units_.push_back(unit);
        continue;
      }
      for (const double t : times) {
        unit.t_low = std::max(0.0, t - kRoom);
        unit.t_high = std::min(1000.0, t + kRoom);
        units_.push_back(unit);
      }
    }
  }
}

int64_t PolicySpace::rows() const {
  int64_t n = 0;
  for (const PolicyUnit& unit : units_) n += int64_t(unit.choices.size()) - 1;
  return n;
}

Policy PolicySpace::policy(const Assignment& z, const std::string& name) const {
  check(z.size() == units_.size(), "policy search: ", z.size(), " choices for ", units_.size(), " units");
  Policy policy;
  policy.name = name;
  for (size_t u = 0; u < z.size(); ++u) {
    const PolicyUnit& unit = units_[u];
    const Choice& choice = unit.choices[size_t(z[u])];
    if (!choice.plain())
      policy.rules.push_back({{unit.layer}, {unit.block}, unit.t_low, unit.t_high, choice});
  }
  return policy;
}

Policy PolicySpace::single(size_t unit, int option) const {
  Assignment z(units_.size(), 0);
  z[unit] = option;
  return policy(z, units_[unit].name() + "." + name_of(units_[unit].choices[size_t(option)]));
}

Assignment PolicySpace::assignment(const Policy& policy) const {
  Assignment z;
  for (const PolicyUnit& unit : units_) {
    const Choice choice = policy.at(unit.block, unit.layer, (unit.t_low + unit.t_high) / 2);
    const auto found = std::find(unit.choices.begin(), unit.choices.end(), choice);
    check(found != unit.choices.end(), "policy \"", policy.name, "\" has ", name_of(choice), " in ",
          unit.name(), ", which the search does not offer");
    z.push_back(int(found - unit.choices.begin()));
  }
  return z;
}

Assignment PolicySpace::uniform(const Choice& choice) const {
  Assignment z;
  for (const PolicyUnit& unit : units_) {
    const auto found = std::find(unit.choices.begin(), unit.choices.end(), choice);
    z.push_back(found == unit.choices.end() ? 0 : int(found - unit.choices.begin()));
  }
  return z;
}

Policy paper_policy(int64_t depth) {
  const int64_t shallow = std::llround(double(depth) * 6 / 20);
  std::vector<int64_t> early, late;
  for (int64_t i = 0; i < depth; ++i) (i < shallow ? early : late).push_back(i);
  using enum Layer;
  const Choice fp4{Format::nvfp4}, fp8{Format::fp8};
  Policy policy;
  policy.name = "paper";
  policy.rules = {{{sa_q, sa_k, ca_o, ffn_t}, {}, 0, 1000, fp4},
                  {{sa_v, sa_o, ca_q, ca_kv}, {}, 0, 1000, fp8}};
  if (!early.empty()) policy.rules.push_back({{ffn_in, ffn_out}, early, 0, 1000, fp8});
  if (!late.empty()) policy.rules.push_back({{ffn_in, ffn_out}, late, 0, 1000, fp4});
  return policy;
}

}  // namespace rivulet
