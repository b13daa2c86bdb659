#include "models/sana_streaming/fused_dit.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/gdn_decay.h"
#include "ops/gdn_fused.h"

namespace rivulet {
namespace {

bool ends_with(const std::string& s, const std::string& tail) {
  return s.size() >= tail.size() && s.compare(s.size() - tail.size(), tail.size(), tail) == 0;
}

}  // namespace

GdnResult delta_net_layer(const GdnAttention& gdn, const FusedBlock& fused, const Tensor& u,
                          const Tensor& cos, const Tensor& sin, const GdnState& start,
                          const std::function<void(const char*)>& piece) {
  constexpr double kQkNormEps = 1e-5;
  const int64_t C = u.dim(3), nH = gdn.heads, S = u.dim(2);
  const Tensor p = linear(u, fused.qkvg, fused.qkvg_bias);
  piece("q|k|v|gate");
  const Tensor rates = linear(u, fused.rates, fused.rates_bias);
  const Tensor decay = gdn_decay(rates.slice(3, nH, 2 * nH), gdn.dt_bias, gdn.A_log);
  piece("write and decay rates");
  const auto part = [&](int64_t i) { return p.slice(3, i * C, (i + 1) * C); };
  return gdn_fused({part(0), part(1), part(2), part(3), gdn.q_norm.weight, gdn.k_norm.weight, cos, sin,
                    rates.slice(3, 0, nH), decay, start},
                   1 / std::sqrt(double(C / nH * S)), kQkNormEps);
}

FusedDit::FusedDit(const DitConfig& config, DType dtype, Device device)
    : dit(config, Device::meta), dtype_(dtype), device_(device) {
  check(config.variant == "streaming", "fused dit: the ", config.variant, " variant does not stream");
  for (Block& block : dit.blocks) fuse(block);
  for_each_tensor(dit, [&](const std::string&, Tensor& t) {
    if (t.device() == Device::meta) t = Tensor(t.shape(), dtype, device);
  });
}

void FusedDit::fuse(Block& block) {
  const int64_t C = dit.config().width, nH = dit.config().heads;
  FusedBlock f;
  f.qkvg = Tensor({4 * C, C}, dtype_, device_);
  f.qkvg_bias = zeros({4 * C}, dtype_, device_);  // q, k and v have none
  const auto part = [&](int64_t i) { return f.qkvg.slice(0, i * C, (i + 1) * C); };
  Linear& q = block.softmax ? block.attn.q : block.gdn.q;
  Linear& k = block.softmax ? block.attn.k : block.gdn.k;
  q.weight = part(0);
  k.weight = part(1);
  (block.softmax ? block.attn.v : block.gdn.v).weight = part(2);
  Linear& gate = block.softmax ? block.attn.output_gate : block.gdn.output_gate;
  gate.weight = part(3);
  gate.bias = f.qkvg_bias.slice(0, 3 * C, 4 * C);
  if (!block.softmax) {
    f.rates = Tensor({2 * nH, C}, dtype_, device_);
    f.rates_bias = Tensor({2 * nH}, dtype_, device_);
    block.gdn.beta_proj.weight = f.rates.slice(0, 0, nH);
    block.gdn.beta_proj.bias = f.rates_bias.slice(0, 0, nH);
    block.gdn.gate_proj.weight = f.rates.slice(0, nH, 2 * nH);
    block.gdn.gate_proj.bias = f.rates_bias.slice(0, nH, 2 * nH);
  }
  const Tensor taps({3, C, C}, dtype_, device_);
  block.mlp.t_conv.weight = taps.permute({1, 2, 0}).unsqueeze(3);
  blocks.push_back(f);
}

void FusedDit::copy_from(Dit& source) {
  const NamedTensors from = named_tensors(source), to = named_tensors(dit);
  check(from.size() == to.size(), "fused dit: the source has ", from.size(), " tensors, not ", to.size());
  const NoGrad off;
  for (size_t i = 0; i < to.size(); ++i) {
    Tensor value = from[i].second.detach();
    const Tensor& t = to[i].second;
    if (value.numel() == 3 * t.numel()) value = value.select(2, 1);  // the tap that is read
    check(from[i].first == to[i].first && value.numel() == t.numel(), "fused dit: ", to[i].first, " ",
          t.shape(), " against ", from[i].first, " ", from[i].second.shape());
    t.copy_from(value.reshape(t.shape()).to(device_));
  }
}

void FusedDit::fill_random(Rng& rng) {
  const NoGrad off;
  const double branch = 1 / std::sqrt(3.0 * double(dit.config().depth));
  for_each_tensor(dit, [&](const std::string& name, Tensor& t) {
    double mean = 0, spread = 0.02;
    if (ends_with(name, "norm.weight"))
      mean = 1;
    else if (ends_with(name, "scale_shift_table"))
      spread = 0.3;
    else if (ends_with(name, "dt_bias"))
      mean = -3;
    else if (t.dims() > 1) {
      const double fan_in = double(t.numel() / t.dim(0));
      const bool last = ends_with(name, "attn.proj.weight") || ends_with(name, "point_conv.conv.weight") ||
                        ends_with(name, "t_conv.weight");
      spread = (last ? branch : 1) / std::sqrt(fan_in);
    }
    t.copy_from(randn(t.shape(), rng, DType::f32, device_) * spread + mean);
  });
}

}  // namespace rivulet
