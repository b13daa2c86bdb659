#include "nn/precision.h"

#include <algorithm>
#include <cmath>

#include "ops/elementwise.h"
#include "tensor/random.h"
#include "tensor/safetensors.h"

namespace rivulet {
namespace {

constexpr const char* kLayerNames[kLayers] = {"sa_q", "sa_k",  "sa_v", "sa_gate", "sa_o",    "scores",
                                              "ca_q", "ca_kv", "ca_o", "ffn_in",  "ffn_out", "ffn_t"};
constexpr const char* kKind = "rivulet precision";
constexpr int64_t kSchema = 1, kMaxRank = 4096;

// Strips `tail` off the end of `name`.
bool take_tail(std::string& name, const std::string& tail) {
  if (name.size() < tail.size() || name.compare(name.size() - tail.size(), tail.size(), tail) != 0)
    return false;
  name.resize(name.size() - tail.size());
  return true;
}

Policy::Rule read_rule(Fields& f) {
  Policy::Rule rule;
  std::vector<std::string> layers;
  std::vector<double> t = {0, 1000};
  std::string choice;
  f.optional("layers", layers);
  f.optional("blocks", rule.blocks, at_least(0));
  f.optional("t", t, between(0, 1000));
  f.required("choice", choice);
  f.done();
  check(t.size() == 2 && t[0] <= t[1], f.where("t"), " must be two numbers, [low, high]");
  rule.t_low = t[0];
  rule.t_high = t[1];
  const auto from = [&](const char* field, auto&& read) {
    try {
      read();
    } catch (const Error& e) {
      fail(f.where(field), ": ", e.what());
    }
  };
  from("layers", [&] {
    for (const std::string& name : layers) rule.layers.push_back(layer_named(name));
  });
  from("choice", [&] { rule.choice = choice_named(choice); });
  const bool narrow = t[0] > 0 || t[1] < 1000;
  for (const Layer layer : rule.layers) {
    check(layer != Layer::ca_kv || !narrow, f.where("t"), ": ca_kv is computed once per prompt, for every t");
    check(layer != Layer::scores || rule.choice == Choice{} || rule.choice == Choice{Format::fp8},
          f.where("choice"), ": scores takes bf16 or fp8, not ", name_of(rule.choice));
  }
  return rule;
}

// Columns of a [N, r] made orthonormal, in place, by Gram and Schmidt, twice over.
void orthonormalise(const Tensor& a) {
  const int64_t n = a.dim(0), r = a.dim(1);
  double* x = a.data<double>();
  for (int64_t j = 0; j < r; ++j)
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t i = 0; i < j; ++i) {
        double dot = 0;
        for (int64_t row = 0; row < n; ++row) dot += x[row * r + i] * x[row * r + j];
        for (int64_t row = 0; row < n; ++row) x[row * r + j] -= dot * x[row * r + i];
      }
      double square = 0;
      for (int64_t row = 0; row < n; ++row) square += x[row * r + j] * x[row * r + j];
      const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
      for (int64_t row = 0; row < n; ++row) x[row * r + j] *= scale;
    }
}

}  // namespace

const char* name_of(Layer layer) { return kLayerNames[int(layer)]; }

Layer layer_named(const std::string& name) {
  std::string known;
  for (int i = 0; i < kLayers; ++i) {
    if (name == kLayerNames[i]) return Layer(i);
    known += (i ? ", " : "") + std::string(kLayerNames[i]);
  }
  fail("layer \"", name, "\" is unknown; there are ", known);
}

std::string name_of(const Choice& c) {
  return std::string(name_of(c.format)) + (c.rank ? "+lr" + std::to_string(c.rank) : "") +
         (c.weight_only ? "+w" : "") + (c.static_scale ? "+static" : "") + (c.fast_sums ? "+fast" : "");
}

Choice choice_named(const std::string& name) {
  Choice c;
  std::string rest = name;
  c.fast_sums = take_tail(rest, "+fast");
  c.static_scale = take_tail(rest, "+static");
  c.weight_only = take_tail(rest, "+w");
  if (const size_t at = rest.find("+lr"); at != std::string::npos) {
    const std::string digits = rest.substr(at + 3);
    check(!digits.empty() && digits.size() <= 4 && std::all_of(digits.begin(), digits.end(), ::isdigit),
          "choice \"", name, "\": the rank of +lr must be a number up to ", kMaxRank);
    c.rank = std::stoll(digits);
    check(c.rank > 0 && c.rank <= kMaxRank, "choice \"", name, "\": rank ", c.rank, ", must be 1 to ",
          kMaxRank);
    rest.resize(at);
  }
  c.format = format_named(rest);
  check(c.format != Format::nvfp4_swept, "choice \"", name, "\": sweeping is for weights: choose nvfp4_46");
  check(!c.fast_sums || (!c.weight_only && (c.format == Format::fp8 || c.format == Format::fp8_tensor)),
        "choice \"", name, "\": +fast is for products of fp8 and fp8_tensor");
  check(!c.static_scale || (!c.weight_only && c.format == Format::fp8_tensor), "choice \"", name,
        "\": +static is for fp8_tensor");
  check(!c.plain() || (c.rank == 0 && !c.weight_only), "choice \"", name, "\": bf16 stands alone");
  return c;
}

Policy Policy::from_json(const Json& json, const std::string& source) {
  Fields f(json, source);
  Policy policy;
  std::string kind;
  int64_t schema = 0;
  f.required("kind", kind);
  check(kind == kKind, f.where("kind"), " is \"", kind, "\", must be \"", kKind, "\"");
  f.required("schema", schema);
  check(schema == kSchema, f.where("schema"), " is ", schema, "; this version reads ", kSchema);
  f.optional("name", policy.name);
  for (Fields& rule : f.objects("rules")) policy.rules.push_back(read_rule(rule));
  policy.notes = f.raw("notes");
  f.done();
  return policy;
}

Policy Policy::read(const std::string& path) { return from_json(read_json(path), path); }

Json Policy::to_json() const {
  Json list = Json::array();
  for (const Rule& rule : rules) {
    Json j = {{"choice", name_of(rule.choice)}};
    if (!rule.layers.empty()) {
      j["layers"] = Json::array();
      for (const Layer layer : rule.layers) j["layers"].push_back(name_of(layer));
    }
    if (!rule.blocks.empty()) j["blocks"] = rule.blocks;
    if (rule.t_low > 0 || rule.t_high < 1000) j["t"] = {rule.t_low, rule.t_high};
    list.push_back(j);
  }
  Json out = {{"kind", kKind}, {"schema", kSchema}, {"name", name}, {"rules", list}};
  if (!notes.is_null() && !notes.empty()) out["notes"] = notes;
  return out;
}

void Policy::write(const std::string& path) const { write_file(path, to_json().dump(1) + "\n"); }

bool Policy::plain() const {
  return std::all_of(rules.begin(), rules.end(), [](const Rule& r) { return r.choice.plain(); });
}

Choice Policy::at(int64_t block, Layer layer, double t) const {
  const auto holds = [](const auto& list, auto x) {
    return list.empty() || std::find(list.begin(), list.end(), x) != list.end();
  };
  for (auto rule = rules.rbegin(); rule != rules.rend(); ++rule) {
    const bool layers = rule->layers.empty() ? layer != Layer::sa_gate : holds(rule->layers, layer);
    if (!layers || !holds(rule->blocks, block)) continue;
    // What is computed once per prompt is no part of a timestep.
    if (layer != Layer::ca_kv && (t < rule->t_low || t > rule->t_high)) continue;
    if (layer == Layer::ca_kv && (rule->t_low > 0 || rule->t_high < 1000)) continue;
    // A rule for every layer speaks of products with weights; attention itself must be named.
    if (layer == Layer::scores && rule->layers.empty()) continue;
    return rule->choice;
  }
  return {};
}

BlockChoices Policy::at(int64_t block, double t) const {
  BlockChoices all;
  for (int i = 0; i < kLayers; ++i) all[size_t(i)] = at(block, Layer(i), t);
  return all;
}

bool Policy::depends_on_t() const {
  return std::any_of(rules.begin(), rules.end(),
                     [](const Rule& r) { return r.t_low > 0 || r.t_high < 1000; });
}

bool Policy::has_static_scales() const {
  return std::any_of(rules.begin(), rules.end(), [](const Rule& r) { return r.choice.static_scale; });
}

void Policy::check_fits(int64_t depth, const std::vector<int64_t>& softmax_blocks) const {
  for (const Rule& rule : rules)
    for (const int64_t block : rule.blocks) {
      check(block < depth, "policy \"", name, "\": block ", block, " in a model of ", depth, " blocks");
      const bool has_scores =
          std::find(softmax_blocks.begin(), softmax_blocks.end(), block) != softmax_blocks.end();
      const bool only_scores = rule.layers == std::vector<Layer>{Layer::scores};
      check(!only_scores || has_scores, "policy \"", name, "\": block ", block, " has no softmax attention");
    }
}

// The range of w is found from a random start by power iterations (Halko, Martinsson and Tropp 2011,
// algorithm 4.4): up down is then close to the best approximation of w by a matrix of that rank.
LowRank split_low_rank(const Tensor& w, int64_t rank) {
  const NoGrad off;
  const Tensor wide = w.detach().reshape({-1, w.dim(-1)}).to(DType::f32);
  rank = std::min({rank, wide.dim(0), wide.dim(1)});
  Rng rng(0x10a4);
  const auto orthonormal = [&](const Tensor& x) {
    const Tensor on_cpu = x.to(Device::cpu).to(DType::f64).contiguous();
    orthonormalise(on_cpu);
    return on_cpu.to(DType::f32).to(w.device());
  };
  constexpr int kIterations = 3;
  Tensor up = orthonormal(matmul(wide, randn({wide.dim(1), rank}, rng).to(w.device())));
  for (int i = 0; i < kIterations; ++i)
    up = orthonormal(matmul(wide, orthonormal(matmul(wide.transpose(0, 1), up))));
  LowRank out{up.to(w.dtype()), matmul(up.transpose(0, 1), wide).to(w.dtype()), {}};
  out.rest = wide - matmul(out.up.to(DType::f32), out.down.to(DType::f32));
  return out;
}

RoundedWeight round_weight(const Tensor& w, const Choice& choice) {
  const Format format = choice.weight_format();
  if (choice.rank == 0) return {fake_quantize(w, format), {}, {}};
  const LowRank branch = split_low_rank(w, choice.rank);
  return {fake_quantize(branch.rest, format).to(w.dtype()).reshape(w.shape()), branch.up, branch.down};
}

const RoundedWeight& RoundedWeights::get(const Key& key, const Tensor& weight) {
  auto found = kept_.find(key);
  if (found == kept_.end()) {
    const NoGrad off;
    found = kept_.emplace(key, round_weight(weight.detach(), std::get<Choice>(key))).first;
  }
  return found->second;
}

RoundedWeight weight_as(const BlockPrecision* p, Layer layer, const Tensor& w) {
  if (!p || p->at(layer).plain()) return {w, {}, {}};
  if (p->weights && !will_record({w})) return p->weights->get({p->block, layer, p->at(layer)}, w);
  return round_weight(w, p->at(layer));
}

Tensor activation_as(const BlockPrecision* p, Layer layer, const Tensor& x) {
  if (!p || p->at(layer).weight_only) return x;
  return fake_quantize(x, p->at(layer).format);
}

const Tensor& SharedInput::as(Layer layer) {
  if (!precision || precision->at(layer).plain() || precision->at(layer).weight_only) return x;
  Tensor& kept = rounded_[size_t(precision->at(layer).format)];
  if (!kept) kept = fake_quantize(x, precision->at(layer).format);
  return kept;
}

Tensor hooked(const BlockPrecision* p, Layer layer,
              const std::function<Tensor(const BlockPrecision*)>& product) {
  if (!p || !p->hook) return product(p);
  const auto as = [&](const Choice& choice) {
    BlockPrecision other = *p;
    other.choices[size_t(layer)] = choice;
    other.hook = nullptr;
    return product(&other);
  };
  return (*p->hook)(p->block, layer, as(p->at(layer)), as);
}

Tensor linear_as(SharedInput& in, Layer layer, const Linear& l) {
  if (in.precision && in.precision->hook)
    return hooked(in.precision, layer, [&](const BlockPrecision* p) {
      SharedInput again(p, in.x);
      return linear_as(again, layer, l);
    });
  if (!in.precision || in.precision->at(layer).plain()) return l(in.x);
  const RoundedWeight w = weight_as(in.precision, layer, l.matrix());
  const Tensor y = linear(in.as(layer), w.matrix, l.bias);
  return w.up ? linear_add(linear(in.x, w.down), w.up, {}, y) : y;
}

}  // namespace rivulet
