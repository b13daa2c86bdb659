// A fused transformer as a file. Parameters have their released names; what is kept as one, the names joined
// by
// '+'; codes and scales of a packed weight are <name>.codes, .scales, .global, .up, .down and .input_scale.
#include <algorithm>

#include "models/sana_streaming/fused_dit.h"

namespace rivulet {
namespace {

constexpr const char* kKind = "rivulet packed transformer";
constexpr const char* kPartNames[kParts] = {"q", "k", "v", "output_gate", "rates"};

bool is_fused(const std::string& name) {
  for (const char* part : {".attn.q.", ".attn.k.", ".attn.v.", ".attn.output_gate.", ".attn.beta_proj.",
                           ".attn.gate_proj.", ".t_conv."})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

// Of a softmax block, which has no rates, a run to the end is named without them.
std::string joined(int64_t first, int64_t last, bool softmax) {
  std::string name;
  if (softmax) last = std::min(last, kRates);
  for (int64_t i = first; i < last; ++i) name += (i > first ? "+" : "") + std::string(kPartNames[i]);
  return name;
}

// Weights of a block with a place among the layers, by released name.
std::vector<std::pair<Layer, std::string>> packed_names() {
  return {{Layer::sa_o, "attn.proj"},
          {Layer::ca_q, "cross_attn.q_linear"},
          {Layer::ca_kv, "cross_attn.kv_linear"},
          {Layer::ca_o, "cross_attn.proj"},
          {Layer::ffn_in, "mlp.inverted_conv.conv"},
          {Layer::ffn_out, "mlp.point_conv.conv"},
          {Layer::ffn_t, "mlp.t_conv"}};
}

class Writer {
 public:
  void put(const std::string& name, const Tensor& t) {
    if (t) tensors_[name] = t.detach().contiguous().to(Device::cpu);
  }
  void put(const std::string& name, const PackedLayer& layer) {
    Tensors codes, scales;
    for (const QuantizedMatrix& w : layer.weights) {
      codes.push_back(w.codes);
      scales.push_back(w.scales);
    }
    const bool rows = scales[0].dim(0) == codes[0].dim(0);
    put(name + ".codes", together(codes));
    put(name + ".scales", rows ? together(scales) : scales[0]);
    put(name + ".global", layer.weights[0].global);
    put(name + ".up", layer.up);
    put(name + ".down", layer.down);
    put(name + ".input_scale", layer.input_scale);
  }
  void save(const std::string& path, const std::map<std::string, std::string>& metadata) const {
    save_safetensors(path, tensors_, metadata);
  }

 private:
  // Pieces that lie one after the other, as one.
  static Tensor together(const Tensors& pieces) {
    Shape shape = pieces[0].shape();
    shape[0] *= int64_t(pieces.size());
    const Tensor out(shape, pieces[0].dtype(), pieces[0].device());
    for (size_t i = 0; i < pieces.size(); ++i)
      out.slice(0, int64_t(i) * pieces[0].dim(0), int64_t(i + 1) * pieces[0].dim(0)).copy_from(pieces[i]);
    return out;
  }
  std::map<std::string, Tensor> tensors_;
};

class Reader {
 public:
  Reader(const SafeTensors& file, Device device) : file_(file), device_(device) {}
  // On the CPU a view of the mapped file.
  Tensor get(const std::string& name, const Shape& shape) const {
    const Tensor t = file_.get(name);
    check(t.shape() == shape, file_.path(), ": ", name, " has shape ", t.shape(), ", the model needs ",
          shape);
    return device_ == Device::cpu ? t : t.to(device_);
  }
  PackedLayer get(const std::string& name, const Choice& choice, int64_t taps, int64_t rows,
                  int64_t cols) const {
    const Format format = choice.weight_format();
    const int64_t group = group_of(format);
    QuantizedMatrix all{format, taps * rows, cols, {}, {}, {}};
    all.codes = get(name + ".codes", {all.rows, is_fp4(format) ? (cols + 1) / 2 : cols});
    all.scales = get(name + ".scales", group ? Shape{all.rows, (cols + group - 1) / group}
                                             : Shape{format == Format::fp8 ? all.rows : 1});
    check(all.codes.dtype() == DType::u8 && all.scales.dtype() == (group ? DType::u8 : DType::f32),
          file_.path(), ": ", name, " has codes in ", all.codes.dtype(), " and scales in ",
          all.scales.dtype());
    if (is_fp4(format)) all.global = get(name + ".global", {1});
    PackedLayer layer;
    layer.choice = choice;
    for (int64_t k = 0; k < taps; ++k) layer.weights.push_back(rows_of(all, k * rows, rows));
    if (choice.static_scale) layer.input_scale = get(name + ".input_scale", {1});
    if (choice.rank == 0) return layer;
    const int64_t rank = std::min({choice.rank, taps * rows, cols});
    layer.up = get(name + ".up", {taps * rows, rank});
    layer.down = get(name + ".down", {rank, cols});
    return layer;
  }

 private:
  const SafeTensors& file_;
  Device device_;
};

}  // namespace

void FusedDit::save(const std::string& path) const {
  Writer out;
  Dit handles = dit;
  for_each_tensor(handles, [&](const std::string& name, Tensor& t) {
    if (!is_fused(name) && t.device() != Device::meta) out.put(name, t);
  });
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    const FusedBlock& b = blocks[i];
    const bool softmax = dit.blocks[i].softmax;
    out.put(block + "attn." + joined(0, kParts, softmax) + ".bias", b.qkvg_bias);
    out.put(block + "attn." + joined(0, kParts, softmax) + ".weight", b.qkvg);
    for (const Projection& p : b.projections) {
      const std::string name = block + "attn." + joined(p.first, p.last, softmax) + ".weight";
      p.layer.packed() ? out.put(name, p.layer) : out.put(name, p.matrix);
    }
    for (const auto& [layer, name] : packed_names())
      if (b.at(layer).packed()) out.put(block + name + ".weight", b.at(layer));
    if (!b.at(Layer::ffn_t).packed())
      out.put(block + "mlp.t_conv.weight", dit.blocks[i].mlp.t_conv.weight.squeeze(3).permute({2, 0, 1}));
  }
  out.save(path, {{"kind", kKind},
                  {"dtype", name_of(dtype_)},
                  {"config", to_json(dit.config()).dump()},
                  {"measured", measured_ ? "yes" : "no"},
                  {"policy", policy_.to_json().dump()}});
}

FusedDit FusedDit::load(const std::string& path, Device device) {
  const SafeTensors file(path);
  const auto said = [&](const char* key) {
    const auto at = file.metadata().find(key);
    check(at != file.metadata().end(), path, ": not a packed transformer: its metadata has no ", key);
    return at->second;
  };
  check(said("kind") == kKind, path, ": not a packed transformer: its kind is \"", said("kind"), "\"");
  Fields fields(parse_json(said("config"), path), path + " config");
  const DitConfig config = read_dit_config(fields);
  fields.done();
  const DType dtype = said("dtype") == "bf16" ? DType::bf16 : DType::f32;
  check(said("dtype") == name_of(dtype), path, ": weights in ", said("dtype"), ", must be bf16 or f32");
  FusedDit model(config, dtype, Device::meta);
  model.device_ = device;
  model.policy_ = Policy::from_json(parse_json(said("policy"), path), path + " policy");
  model.measured_ = said("measured") == "yes";
  model.policy_.check_fits(config.depth, config.softmax_blocks);
  const Reader in(file, device);
  const int64_t C = config.width;
  for_each_tensor(model.dit, [&](const std::string& name, Tensor& t) {
    const bool packed = file.contains(name + ".codes");
    if (!is_fused(name) && !packed) t = in.get(name, t.shape());
  });
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string prefix = "blocks." + std::to_string(i) + ".";
    Block& block = model.dit.blocks[size_t(i)];
    FusedBlock& b = model.blocks[size_t(i)];
    const BlockChoices choices = model.policy_.at(i, 0);
    const int64_t rows = b.qkvg.dim(0);
    b.qkvg_bias = in.get(prefix + "attn." + joined(0, kParts, block.softmax) + ".bias", {rows});
    b.qkvg = b.rates = b.rates_bias = {};
    for (const auto& [first, last] : part_runs(choices, !block.softmax)) {
      const Choice choice = part_choice(choices, first);
      const int64_t count = (last < kParts ? last * C : rows) - first * C;
      const std::string name = prefix + "attn." + joined(first, last, block.softmax) + ".weight";
      Projection p{first, last, {}, {}};
      if (choice.plain())
        p.matrix = in.get(name, {count, C});
      else
        p.layer = in.get(name, choice, 1, count, C);
      b.projections.push_back(p);
    }
    if (b.projections.size() == 1 && b.projections[0].matrix) {
      b.qkvg = b.projections[0].matrix;
      b.projections.clear();
    }
    for (const auto& [layer, name] : packed_names()) {
      if (of(choices, layer).plain()) continue;
      const int64_t outputs = layer == Layer::ca_kv    ? 2 * C
                              : layer == Layer::ffn_in ? 2 * config.mlp_ratio * C
                                                       : C;
      const int64_t cols = layer == Layer::ffn_out ? config.mlp_ratio * C : C;
      b.packed[size_t(layer)] =
          in.get(prefix + name + ".weight", of(choices, layer), layer == Layer::ffn_t ? 3 : 1, outputs, cols);
    }
    if (of(choices, Layer::ffn_t).plain())
      block.mlp.t_conv.weight =
          in.get(prefix + "mlp.t_conv.weight", {3, C, C}).permute({1, 2, 0}).unsqueeze(3);
  }
  return model;
}

}  // namespace rivulet
