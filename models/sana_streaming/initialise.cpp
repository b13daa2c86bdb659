// Weights to start training from.
#include <cmath>

#include "models/sana_streaming/dit.h"
#include "ops/elementwise.h"

namespace rivulet {
namespace {

// N(0, gain^2 / fan_in), where fan_in counts the inputs that one output sums over.
void fill_linear(const Tensor& weight, double gain, Rng& rng) {
  const double fan_in = double(weight.numel()) / double(weight.dim(0));
  const Tensor values = randn(weight.shape(), rng, DType::f32, weight.device());
  weight.fill(0);
  weight.add_in_place(values, gain / std::sqrt(fan_in));
}

bool ends_with(const std::string& s, const std::string& tail) {
  return s.size() >= tail.size() && s.compare(s.size() - tail.size(), tail.size(), tail) == 0;
}

// The value that fills a tensor which does not start random, by the end of its name.
struct Constant {
  const char* name;
  double value;
};
// training.md 0: write gate open, decay near 1, output gate silu(1), so a block starts near linear attention.
// The temporal convolution and the output layer start at zero: the first output is zero.
constexpr Constant kConstants[] = {
    {"attn.beta_proj.weight", 0},
    {"attn.beta_proj.bias", 5},
    {"attn.gate_proj.weight", 0},
    {"attn.gate_proj.bias", 0},
    {"attn.dt_bias", -8},
    {"attn.A_log", 0},
    {"attn.output_gate.weight", 0},
    {"attn.output_gate.bias", 1},
    {"q_norm.weight", 1},
    {"k_norm.weight", 1},
    {"attention_y_norm.weight", 1},
    {"t_conv.weight", 0},
    {"final_layer.linear.weight", 0},
    {".bias", 0},
};

}  // namespace

void Dit::initialise(Rng& rng) {
  const NoGrad off;
  const double branch_gain = 1 / std::sqrt(3.0 * double(config_.depth));  // three branches a block add up
  for_each_tensor(*this, [&](const std::string& name, Tensor& t) {
    for (const Constant& c : kConstants)
      if (ends_with(name, c.name)) {
        t.fill(c.value);
        return;
      }
    if (ends_with(name, "scale_shift_table")) {
      t.fill(0);
      if (t.dim(0) == 6) {  // both gates start open
        t.select(0, 2).fill(1);
        t.select(0, 5).fill(1);
      }
      return;
    }
    const bool branch_end = ends_with(name, "proj.weight") || ends_with(name, "point_conv.conv.weight");
    const bool time = ends_with(name, "t_block.1.weight");
    fill_linear(t, branch_end && name.find("blocks.") == 0 ? branch_gain : time ? 0.1 : 1, rng);
  });
}

void Dit::bound_memory(const NamedTensors& trained, const std::string& prefix) const {
  const NoGrad off;
  const double largest = std::sqrt(1.9 / double(config_.heads));
  for (const auto& [name, tensor] : trained)
    for (size_t i = 0; i < blocks.size(); ++i)
      if (!blocks[i].softmax && name == prefix + "blocks." + std::to_string(i) + ".attn.k_norm.weight") {
        const Tensor weight = tensor.detach();
        weight.copy_from(clamp(weight, -largest, largest));
      }
}

}  // namespace rivulet
