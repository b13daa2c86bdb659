#include "models/sana_streaming/fused_dit.h"

#include "models/sana_streaming/checkpoint.h"
#include "ops/elementwise.h"
#include "ops/gdn_decay.h"
#include "ops/gdn_fused.h"

namespace rivulet {

GdnResult delta_net_layer(const GdnAttention& gdn, const FusedBlock& fused, const Tensor& u,
                          const Tensor& cos, const Tensor& sin, const GdnState& start,
                          const std::function<void(const char*)>& piece) {
  constexpr double kQkNormEps = 1e-5;
  const int64_t C = u.dim(3), nH = gdn.heads, S = u.dim(2);
  const Tensor p = linear(u, fused.qkvg, fused.qkvg_bias);
  piece("q|k|v|gate");
  const Tensor rates = p.slice(3, 4 * C, 4 * C + 2 * nH);
  const Tensor decay = gdn_decay(rates.slice(3, nH, 2 * nH), gdn.dt_bias, gdn.A_log);
  piece("decay");
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
  constexpr int64_t kWhole = 64;  // rows of the result then begin at whole lines of memory
  const int64_t extra = block.softmax ? 0 : (2 * nH + kWhole - 1) / kWhole * kWhole;
  f.qkvg = zeros({4 * C + extra, C}, dtype_, device_);
  f.qkvg_bias = zeros({4 * C + extra}, dtype_, device_);  // q, k and v have none
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
    f.rates = f.qkvg.slice(0, 4 * C, 4 * C + 2 * nH);
    f.rates_bias = f.qkvg_bias.slice(0, 4 * C, 4 * C + 2 * nH);
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
  for_each_tensor(dit, [&](const std::string& name, Tensor& t) {
    const RandomWeight r = random_dit_weight(name, t.shape(), dit.config().depth);
    t.copy_from(randn(t.shape(), rng, DType::f32, device_) * r.spread + r.mean);
  });
}

}  // namespace rivulet
