#include "models/sana_streaming/fused_dit.h"

#include <algorithm>
#include <cmath>

#include "models/sana_streaming/checkpoint.h"
#include "ops/elementwise.h"
#include "ops/gdn_decay.h"
#include "ops/gdn_fused.h"

namespace rivulet {
GdnResult delta_net_layer(const GdnAttention& gdn, const FusedBlock& fused, Operand u, const Tensor& cos,
                          const Tensor& sin, const GdnState& start,
                          const std::function<void(const char*)>& piece) {
  constexpr double kQkNormEps = 1e-5;
  const int64_t C = u.shape()[3], nH = gdn.heads, S = u.shape()[2];
  const auto [q, k, v, gate, all_rates] = fused.project(u);
  piece("q|k|v|gate");
  const Tensor rates = all_rates.slice(3, 0, 2 * nH);
  const Tensor decay = gdn_decay(rates.slice(3, nH, 2 * nH), gdn.dt_bias, gdn.A_log);
  piece("decay");
  return gdn_fused(
      {q, k, v, gate, gdn.q_norm.weight, gdn.k_norm.weight, cos, sin, rates.slice(3, 0, nH), decay, start},
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
  f.qkvg = Tensor({4 * C + extra, C}, dtype_, device_);
  f.qkvg_bias = Tensor({4 * C + extra}, dtype_, device_);
  if (device_ != Device::meta) {
    f.qkvg.fill(0);
    f.qkvg_bias.fill(0);  // q, k and v have none
  }
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

const PackedLayer* FusedBlock::codes_reader() const {
  for (const Projection& p : projections)
    if (p.layer.reads_codes()) return &p.layer;
  return nullptr;
}
bool FusedBlock::reads_codes_alone() const {
  // What was rounded for one serves others of the same format.
  return !projections.empty() &&
         std::all_of(projections.begin(), projections.end(), [&](const Projection& p) {
           return p.layer.reads_codes() && p.layer.choice.format == projections[0].layer.choice.format;
         });
}

void FusedDit::measure(bool on) {
  measured_ = measured_ || measuring_;
  measuring_ = on;
  for (FusedBlock& b : blocks) {
    for (Projection& p : b.projections) p.layer.measuring = on;
    for (PackedLayer& l : b.packed) l.measuring = on;
  }
}

std::array<Tensor, kParts> FusedBlock::project(Operand& u, int64_t first, int64_t last) const {
  std::array<Tensor, kParts> out;
  const int64_t C = u.shape()[u.shape().size() - 1], rows = qkvg_bias.dim(0);
  const auto start = [&](int64_t part) { return part < kParts ? part * C : rows; };
  const auto put = [&](int64_t begin, int64_t end, const Tensor& p) {
    for (int64_t i = begin; i < end; ++i)
      out[size_t(i)] = p.slice(-1, start(i) - start(begin), start(i + 1) - start(begin));
  };
  if (projections.empty()) {
    put(first, last,
        linear(u.x(), qkvg.slice(0, start(first), start(last)),
               qkvg_bias.slice(0, start(first), start(last))));
    return out;
  }
  for (const Projection& p : projections) {
    const int64_t begin = std::max(first, p.first), end = std::min(last, p.last);
    if (begin >= end) continue;
    constexpr int64_t kGate = 3;  // q, k and v have no bias
    const Tensor bias = end <= kGate ? Tensor() : qkvg_bias.slice(0, start(begin), start(end));
    const int64_t from = start(begin) - start(p.first), to = start(end) - start(p.first);
    put(begin, end,
        p.layer.packed() ? product_of_rows(u, p.layer, from, to, bias, qkvg_bias.dtype())
                         : linear(u.x(), p.matrix.slice(0, from, to), bias));
  }
  return out;
}

Choice part_choice(const BlockChoices& choices, int64_t part) {
  constexpr Layer kLayerOf[] = {Layer::sa_q, Layer::sa_k, Layer::sa_v, Layer::sa_gate};
  return part == kRates ? Choice{} : of(choices, kLayerOf[part]);
}

std::vector<std::pair<int64_t, int64_t>> part_runs(const BlockChoices& choices, bool with_rates) {
  const int64_t parts = with_rates ? kParts : kRates;
  std::vector<std::pair<int64_t, int64_t>> runs;
  for (int64_t first = 0, last = 0; first < parts; first = last) {
    // A scale of the whole matrix and a low-rank branch belong to one layer; under a static scale of what
    // they read, q, k and v are one matrix.
    const Choice c = part_choice(choices, first);
    const bool alone = c.rank > 0 || (c.format == Format::fp8_tensor && !c.static_scale) || is_fp4(c.format);
    last = first + 1;
    while (last < parts && !alone && part_choice(choices, last) == c) ++last;
    runs.emplace_back(first, last == kRates && !with_rates ? kParts : last);
  }
  return runs;
}

void FusedDit::pack_projections(Block& block, FusedBlock& fused, const BlockChoices& choices) {
  const int64_t C = dit.config().width, rows = fused.qkvg.dim(0);
  const auto runs = part_runs(choices, !block.softmax);
  if (runs.size() == 1 && part_choice(choices, 0).plain()) return;
  for (const auto& [first, last] : runs) {
    Projection p{first, last, {}, {}};
    const Choice choice = part_choice(choices, first);
    const Tensor w = fused.qkvg.slice(0, first * C, last < kParts ? last * C : rows);
    if (choice.plain())
      p.matrix = w.clone();
    else
      p.layer = rivulet::pack(w, choice);
    fused.projections.push_back(p);
  }
  Linear* linears[] = {block.softmax ? &block.attn.q : &block.gdn.q,
                       block.softmax ? &block.attn.k : &block.gdn.k,
                       block.softmax ? &block.attn.v : &block.gdn.v,
                       block.softmax ? &block.attn.output_gate : &block.gdn.output_gate};
  for (Linear* l : linears) l->weight = Tensor(l->weight.shape(), dtype_, Device::meta);
  if (!block.softmax)
    for (Linear* l : {&block.gdn.beta_proj, &block.gdn.gate_proj})
      l->weight = Tensor(l->weight.shape(), dtype_, Device::meta);
  fused.qkvg = fused.rates = {};
}

void FusedDit::pack(const Policy& policy) {
  const DitConfig& c = dit.config();
  policy.check_fits(c.depth, c.softmax_blocks);
  check(!policy.depends_on_t(), "fused dit: policy \"", policy.name,
        "\" depends on t, weights are kept once");
  check(policy_.plain(), "fused dit: the weights are packed already");
  const NoGrad off;
  policy_ = policy;
  for (int64_t i = 0; i < c.depth; ++i) {
    Block& block = dit.blocks[size_t(i)];
    FusedBlock& fused = blocks[size_t(i)];
    const BlockChoices choices = policy.at(i, 0);
    check(of(choices, Layer::scores).plain(), "fused dit: policy \"", policy.name,
          "\" rounds the attention of block ", i, ", which the fast transformer computes in its own type");
    pack_projections(block, fused, choices);
    const auto take = [&](Layer layer, Tensor& weight, const Tensor& matrix) {
      if (of(choices, layer).plain()) return;
      fused.packed[size_t(layer)] = rivulet::pack(matrix, of(choices, layer));
      weight = Tensor(weight.shape(), dtype_, Device::meta);
    };
    const auto take_linear = [&](Layer layer, Linear& l) { take(layer, l.weight, l.matrix()); };
    take_linear(Layer::sa_o, block.softmax ? block.attn.proj : block.gdn.proj);
    take_linear(Layer::ca_q, block.cross_attn.q_linear);
    take_linear(Layer::ca_kv, block.cross_attn.kv_linear);
    take_linear(Layer::ca_o, block.cross_attn.proj);
    take_linear(Layer::ffn_in, block.mlp.inverted_conv.conv);
    take_linear(Layer::ffn_out, block.mlp.point_conv.conv);
    Tensor& t_conv = block.mlp.t_conv.weight;
    take(Layer::ffn_t, t_conv, t_conv.squeeze(3).permute({2, 0, 1}));
  }
}

int64_t FusedDit::weight_bytes() const {
  int64_t total = 0;
  for (const FusedBlock& b : blocks) {
    for (const Tensor& t : {b.qkvg, b.qkvg_bias})
      if (t) total += t.bytes();
    for (const Projection& p : b.projections) total += p.layer.bytes() + (p.matrix ? p.matrix.bytes() : 0);
    for (const PackedLayer& l : b.packed) total += l.bytes();
  }
  // Of the parameters, those that are not views of the tensors above.
  Dit copy = dit;
  for_each_tensor(copy, [&](const std::string& name, Tensor& t) {
    const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    const bool fused = has(".attn.q.") || has(".attn.k.") || has(".attn.v.") || has(".attn.output_gate.") ||
                       has(".attn.beta_proj.") || has(".attn.gate_proj.");
    if (!fused && t.device() != Device::meta) total += t.bytes();
  });
  return total;
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
