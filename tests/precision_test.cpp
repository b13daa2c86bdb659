// The precision policy: its file, and what it does to a small transformer.
#include "nn/precision.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "dit_stream_fixtures.h"
#include "op_fixtures.h"
#include "ops/elementwise.h"
#include "ops/modulate.h"
#include "ops/norm_quantize.h"
#include "ops/reduce.h"
#include "ops/residual_norm.h"
#include "tensor/cuda.h"

using namespace rivulet;

namespace {

Policy policy_of(const std::string& rules) {
  return Policy::from_json(
      parse_json(R"({"kind": "rivulet precision", "schema": 1, "name": "p", "rules": )" + rules + "}",
                 "p.json"),
      "p.json");
}

Tensor pass(const Dit& dit, const Clip& in, double t) {
  const NoGrad off;
  return dit(cat({in.noise, in.source}, 1), full({1}, t), dit.text_context(in.text, in.mask));
}

// |got - want| / |want|, as vectors.
double relative(const Tensor& got, const Tensor& want) {
  return std::sqrt(sum(square(got - want)).item() / sum(square(want)).item());
}

struct Small {
  Dit dit = random_dit(small(64, {1, 3}));
  Clip in = clip(dit.config(), 3);
  Tensor exact = pass(dit, in, 961);
  double error(const std::string& rules, double t = 961) {
    dit.precision = policy_of(rules);
    const double e = relative(pass(dit, in, t), t == 961 ? exact : exact_at(t));
    dit.precision = {};
    return e;
  }
  Tensor exact_at(double t) {
    Dit plain = dit;
    plain.precision = {};
    return pass(plain, in, t);
  }
};

}  // namespace

TEST_CASE("policy: choices have names") {
  for (const char* name : {"bf16", "fp8", "fp8_tensor", "mxfp8", "nvfp4", "nvfp4_46", "nvfp4+lr32",
                           "nvfp4_46+lr8+w", "fp8+fast", "fp8_tensor+static+fast"})
    CHECK(name_of(choice_named(name)) == name);
  for (const char* bad :
       {"fp4", "", "nvfp4_swept", "nvfp4+lr", "nvfp4+lr0", "fp8+lrx", "bf16+w", "nvfp4+fast", "nvfp4+lr32 "})
    CHECK_THROWS_AS(choice_named(bad), Error);
}

TEST_CASE("policy: later rules win; gates and attention are asked for by name") {
  const Policy p = policy_of(R"([{"choice": "fp8"}, {"layers": ["sa_q", "ffn_t"], "choice": "nvfp4"},
    {"layers": ["sa_q"], "blocks": [2, 3], "t": [900, 1000], "choice": "bf16"}])");
  CHECK(p.at(0, Layer::sa_v, 0) == Choice{Format::fp8});
  CHECK(p.at(0, Layer::sa_q, 950) == Choice{Format::nvfp4});
  CHECK(p.at(3, Layer::sa_q, 950).plain());
  CHECK(p.at(3, Layer::sa_q, 1000).plain());
  CHECK(p.at(3, Layer::sa_q, 899) == Choice{Format::nvfp4});
  CHECK(p.at(3, Layer::ca_kv, 950) == Choice{Format::fp8});
  CHECK(p.at(0, Layer::sa_gate, 0).plain());
  CHECK(p.at(0, Layer::scores, 0).plain());
  CHECK(p.depends_on_t());
  CHECK(Policy().plain());
  const std::string path = (std::filesystem::temp_directory_path() / "rivulet_policy_test.json").string();
  p.write(path);
  CHECK(Policy::read(path).to_json() == p.to_json());
  std::filesystem::remove(path);
}

TEST_CASE("policy: what it does not know it refuses, by name") {
  const auto says = [](const std::string& rules, const std::string& words) {
    const std::string text = error_of([&] { policy_of(rules); });
    CAPTURE(text);
    CHECK(text.find(words) != std::string::npos);
    CHECK(text.find("p.json") == 0);
  };
  says(R"([{"choice": "fp8", "layers": ["sa_qq"]}])", "sa_qq");
  says(R"([{"choice": "fp7"}])", "fp7");
  says(R"([{"choice": "fp8", "layer": "sa_q"}])", "layer");
  says(R"([{"layers": ["sa_q"]}])", "choice");
  says(R"([{"choice": "fp8", "blocks": [-1]}])", "-1");
  says(R"([{"choice": "fp8", "t": [900, 100]}])", "t");
  says(R"([{"choice": "fp8", "layers": ["ca_kv"], "t": [900, 1000]}])", "ca_kv");
  says(R"([{"choice": "nvfp4", "layers": ["scores"]}])", "scores");
  Small s;
  CHECK(error_of([&] { s.error(R"([{"choice": "fp8", "blocks": [4]}])"); }).find("block 4") !=
        std::string::npos);
  CHECK(error_of([&] {
          s.error(R"([{"choice": "fp8", "layers": ["scores"], "blocks": [0]}])");
        }).find("block 0") != std::string::npos);
}

TEST_CASE("policy: those that are shipped can be read and fit the 2B model") {
  const DitConfig c;
  int count = 0;
  for (const auto& file : std::filesystem::directory_iterator(std::string(RIVULET_SOURCE_DIR) +
                                                              "/models/sana_streaming/policies")) {
    CAPTURE(file.path().string());
    Policy::read(file.path().string()).check_fits(c.depth, c.softmax_blocks);
    ++count;
  }
  CHECK(count >= 8);
  const Policy paper =
      Policy::read(std::string(RIVULET_SOURCE_DIR) + "/models/sana_streaming/policies/paper.json");
  // dit.md section 9: the FP4 and FP8 parameters of Table 4, unpadded.
  const double square = 2240.0 * 2240.0, sizes[kLayers] = {1, 1, 1, 1, 1, 0, 1, 2, 1, 6, 3, 3};
  double fp4 = 0, fp8 = 0;
  for (int64_t block = 0; block < c.depth; ++block)
    for (int i = 0; i < kLayers; ++i) {
      const Format f = paper.at(block, Layer(i), 0).format;
      if (is_fp4(f)) fp4 += sizes[i] * square;
      if (f == Format::fp8) fp8 += sizes[i] * square;
    }
  CHECK(fp4 == doctest::Approx(1258e6).epsilon(0.04));
  CHECK(fp4 + fp8 == doctest::Approx(2040e6).epsilon(0.02));
}

TEST_CASE("policy: in a transformer, fewer bits lose more, and every layer feels its own choice") {
  Small s;
  CHECK(s.error("[]") == 0);
  CHECK(s.error(R"([{"choice": "bf16"}])") == 0);
  const double fp8 = s.error(R"([{"choice": "fp8"}])"), mx = s.error(R"([{"choice": "mxfp8"}])"),
               fp4 = s.error(R"([{"choice": "nvfp4"}])"), better = s.error(R"([{"choice": "nvfp4_46"}])"),
               helped = s.error(R"([{"choice": "nvfp4+lr32"}])"),
               weights = s.error(R"([{"choice": "nvfp4+w"}])");
  CAPTURE(fp8);
  CAPTURE(mx);
  CAPTURE(fp4);
  CAPTURE(better);
  CAPTURE(helped);
  CAPTURE(weights);
  CHECK(fp8 > 1e-3);
  CHECK(fp8 < 0.1);
  CHECK(mx < 0.1);
  CHECK(fp4 > 2 * fp8);
  CHECK(fp4 < 0.6);
  CHECK(better < 0.6);
  CHECK(better != fp4);
  CHECK(helped < fp4);
  CHECK(weights < fp4);
  for (int i = 0; i < kLayers; ++i) {
    CAPTURE(std::string(name_of(Layer(i))));
    const double e =
        s.error(R"([{"choice": "fp8", "layers": [")" + std::string(name_of(Layer(i))) + R"("]}])");
    CHECK(e > 1e-5);
    CHECK(e < fp4);
  }
}

TEST_CASE("policy: a part of the timesteps") {
  Small s;
  const std::string rules = R"([{"choice": "nvfp4", "t": [900, 1000], "layers": ["ffn_in", "sa_q"]}])";
  CHECK(s.error(rules, 893) == 0);
  CHECK(s.error(rules, 961) > 1e-3);
  CHECK(s.error(rules, 961) == s.error(R"([{"choice": "nvfp4", "layers": ["ffn_in", "sa_q"]}])", 961));
  s.dit.precision = policy_of(rules);
  const Tensor two = cat({s.in.noise, s.in.source}, 1).expand({2, 16, 3, kHeight, kWidth});
  TextContext text = s.dit.text_context(s.in.text, s.in.mask);
  for (KeyValue& kv : text.keys) kv = {cat({kv.k, kv.k}, 0), cat({kv.v, kv.v}, 0)};
  text.mask = cat({text.mask, text.mask}, 0);
  CHECK_THROWS_AS(s.dit(two, Tensor::of({961, 893}, {2}), text), Error);
}

TEST_CASE("policy: kept rounded weights change nothing") {
  Small s;
  for (const char* choice : {"fp8", "nvfp4_46", "nvfp4+lr4"}) {
    s.dit.precision = policy_of(R"([{"choice": ")" + std::string(choice) + R"("}])");
    s.dit.rounded = nullptr;
    const Tensor fresh = pass(s.dit, s.in, 961);
    s.dit.rounded = std::make_shared<RoundedWeights>();
    const Tensor first = pass(s.dit, s.in, 961), second = pass(s.dit, s.in, 961);
    CHECK(first.to_vector() == fresh.to_vector());
    CHECK(second.to_vector() == fresh.to_vector());
  }
}

TEST_CASE("policy: the gradient passes through the rounding") {
  Small s;
  const TextContext text = s.dit.text_context(s.in.text, s.in.mask);
  const auto gradients = [&](const std::string& rules, bool again) {
    s.dit.precision = policy_of(rules);
    s.dit.recompute = again;
    const NamedTensors all = named_tensors(s.dit);
    for (auto& [name, t] : all) t.set_grad({});
    set_requires_grad(all, true);
    backward(sum(square(s.dit(cat({s.in.noise, s.in.source}, 1), full({1}, 961), text))));
    Tensors out;
    for (const auto& [name, t] : all)
      if (name.find("weight") != std::string::npos && name.find("blocks") == 0 && t.grad())
        out.push_back(t.grad().reshape({-1}));
    set_requires_grad(all, false);
    return cat(out, 0);
  };
  const Tensor exact = gradients("[]", false);
  const Tensor fp8 = gradients(R"([{"choice": "fp8"}, {"choice": "fp8", "layers": ["scores"]}])", false);
  const Tensor fp4 = gradients(R"([{"choice": "nvfp4"}])", false);
  CHECK(relative(fp8, exact) < 0.2);
  CHECK(relative(fp8, exact) > 1e-3);
  CHECK(relative(fp4, exact) < 1);
  CHECK(gradients(R"([{"choice": "nvfp4"}])", true).to_vector() == fp4.to_vector());
}

TEST_CASE("a low-rank branch carries what it can") {
  Rng rng(7);
  const Tensor up = randn({48, 3}, rng), down = randn({3, 80}, rng);
  const Tensor w = matmul(up, down) * 3.0 + randn({48, 80}, rng) * 0.1;
  const RoundedWeight r = round_weight(w, choice_named("nvfp4+lr3"));
  CHECK(r.up.shape() == Shape{48, 3});
  CHECK(r.down.shape() == Shape{3, 80});
  const double with = relative(r.matrix + matmul(r.up, r.down), w);
  CHECK(with < 0.15 * relative(round_weight(w, choice_named("nvfp4")).matrix, w));
}

namespace {

// Relative differences of every output of a clip: the fast transformer's from the plain one's under a policy
// (off), and the policy's own effect.
struct Differences {
  std::vector<double> off, effect;
};
Differences compare_runtimes(Dit& dit, const Clip& in, const Tensors& exact, const Policy& policy) {
  const auto bounds = bounds_of(dit.config(), 3, 2);
  StreamState state;
  dit.precision = policy;
  const Tensors want = plain(dit, in, bounds, state);
  dit.precision = {};
  FusedDit model(dit.config(), DType::f32, Device::cpu);
  model.copy_from(dit);
  const int64_t before = model.weight_bytes();
  model.pack(policy);
  CHECK(model.weight_bytes() < before);
  DitStream stream(model, options(3));
  stream.set_text(in.text, in.mask);
  const Tensors got = fast(stream, in, bounds);
  Differences d;
  for (size_t i = 0; i < got.size(); ++i) {
    d.off.push_back(relative(got[i], want[i]));
    d.effect.push_back(relative(want[i], exact[i]));
  }
  std::sort(d.off.begin(), d.off.end());
  std::sort(d.effect.begin(), d.effect.end());
  return d;
}

}  // namespace

TEST_CASE("policy: the fast transformer keeps and multiplies what the plain one rounds") {
  Dit dit = random_dit(small(64, {1, 3}));
  const Clip in = clip(dit.config(), 6);
  in.mask.fill(1);  // the plain one rounds tokens that the fast one leaves out together with the others
  StreamState state;
  const Tensors exact = plain(dit, in, bounds_of(dit.config(), 3, 2), state);
  // The numbers are the same but for the order of sums. That moves a value across a rounding step now and
  // then, so not every output agrees to the last digit.
  for (int i = 0; i < kLayers; ++i) {
    if (Layer(i) == Layer::scores) continue;
    const std::string name = name_of(Layer(i));
    CAPTURE(name);
    const Differences d =
        compare_runtimes(dit, in, exact, policy_of(R"([{"choice": "fp8", "layers": [")" + name + R"("]}])"));
    CHECK(d.off[0] < 0.02 * d.effect[0]);
    CHECK(d.off.back() < 0.5 * d.effect.back());
  }
  // With every layer rounded, one such step moves many others; two different roundings would differ by 1.4
  // times the effect of one.
  const char* policies[] = {
      R"([{"choice": "mxfp8"}, {"choice": "mxfp8", "layers": ["sa_gate"]}])", R"([{"choice": "nvfp4"}])",
      R"([{"choice": "nvfp4_46+lr4"}])", R"([{"choice": "nvfp4+w"}])",
      R"([{"choice": "fp8_tensor"}, {"choice": "fp8", "layers": ["sa_q", "sa_k", "sa_v", "sa_gate"]},
          {"choice": "nvfp4", "layers": ["sa_k", "ca_q", "ffn_t"], "blocks": [1, 2]},
          {"choice": "bf16", "layers": ["ffn_in", "sa_v"], "blocks": [0, 3]}])"};
  for (const char* rules : policies) {
    CAPTURE(std::string(rules));
    const Differences d = compare_runtimes(dit, in, exact, policy_of(rules));
    CHECK(d.off[0] < 0.7 * d.effect[0]);
  }
  FusedDit model(dit.config(), DType::f32, Device::cpu);
  CHECK_THROWS_AS(model.pack(policy_of(R"([{"choice": "fp8", "t": [900, 1000], "layers": ["sa_q"]}])")),
                  Error);
  CHECK_THROWS_AS(model.pack(policy_of(R"([{"choice": "fp8", "layers": ["scores"]}])")), Error);
}

TEST_CASE("policy: static scales are measured first, and kept in the file") {
  Dit dit = random_dit(small(64, {1, 3}));
  const Clip in = clip(dit.config(), 6);
  const auto bounds = bounds_of(dit.config(), 3, 2);
  StreamState state;
  const Tensors exact = plain(dit, in, bounds, state);
  FusedDit model(dit.config(), DType::f32, Device::cpu);
  model.copy_from(dit);
  model.pack(policy_of(R"([{"choice": "fp8_tensor+static+fast"}])"));
  const auto run = [&](const FusedDit& m) {
    DitStream stream(m, options(3));
    stream.set_text(in.text, in.mask);
    return fast(stream, in, bounds);
  };
  CHECK(error_of([&] { run(model); }).find("not measured") != std::string::npos);
  const auto worst = [&](const Tensors& got) {
    double e = 0;
    for (size_t i = 0; i < got.size(); ++i) e = std::max(e, relative(got[i], exact[i]));
    return e;
  };
  model.measure(true);
  const double dynamic = worst(run(model));
  model.measure(false);
  const Tensors fixed = run(model);
  CHECK(dynamic < 0.15);
  CHECK(worst(fixed) < 1.5 * dynamic);
  CHECK(fixed[0].to_vector() == run(model)[0].to_vector());
  const std::string path =
      (std::filesystem::temp_directory_path() / ("rivulet_static_" + std::to_string(::getpid()))).string();
  model.save(path);
  CHECK(run(FusedDit::load(path, Device::cpu)).back().to_vector() == fixed.back().to_vector());
  std::filesystem::remove(path);
}

TEST_CASE("a packed transformer as a file: the same outputs, and the weights stay in it") {
  Dit dit = random_dit(small(64, {1, 3}));
  const Clip in = clip(dit.config(), 6);
  const std::string path =
      (std::filesystem::temp_directory_path() / ("rivulet_packed_" + std::to_string(::getpid()))).string();
  for (const char* rules :
       {R"([{"choice": "nvfp4_46+lr4"}, {"choice": "fp8", "layers": ["sa_q", "sa_k", "ffn_in"]},
                                {"choice": "fp8_tensor", "layers": ["ca_o"]}, {"choice": "bf16", "blocks": [2]}])",
        R"([{"choice": "mxfp8"}, {"choice": "mxfp8", "layers": ["sa_gate"]}])", "[]"}) {
    CAPTURE(std::string(rules));
    FusedDit model(dit.config(), DType::f32, Device::cpu);
    model.copy_from(dit);
    model.pack(policy_of(rules));
    model.save(path);
    const int64_t held = cpu_memory().now;
    const FusedDit back = FusedDit::load(path, Device::cpu);
    CHECK(cpu_memory().now - held < back.weight_bytes() / 20);
    CHECK(back.weight_bytes() == model.weight_bytes());
    CHECK(back.policy().to_json() == model.policy().to_json());
    const auto run = [&](const FusedDit& m) {
      DitStream stream(m, options(3));
      stream.set_text(in.text, in.mask);
      return fast(stream, in, bounds_of(dit.config(), 3, 2));
    };
    const Tensors a = run(model), b = run(back);
    for (size_t i = 0; i < a.size(); ++i) CHECK(a[i].to_vector() == b[i].to_vector());
  }
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 100);
  CHECK_THROWS_AS(FusedDit::load(path, Device::cpu), Error);
  save_safetensors(path, {{"x", ones({2})}});
  CHECK(error_of([&] { FusedDit::load(path, Device::cpu); }).find("not a packed transformer") !=
        std::string::npos);
  std::filesystem::remove(path);
}

TEST_CASE("norm_quantize: the ops one after the other, and the codes of what they give") {
  Rng rng(9);
  const bool gpu = cuda_available();
  for (const int64_t C : {64, 2240}) {
    const auto make = [&](const Shape& shape) {
      const Tensor x = randn(shape, rng);
      return gpu ? x.to(DType::bf16).to(Device::cuda) : x;
    };
    const Tensor h = make({1, 3, 7, C}), branch = make({1, 3, 7, C}), gate = make({1, 1, 1, C}),
                 shift = make({1, 1, 1, C}), scale = make({1, 1, 1, C});
    const Tensor sum = gate_residual(h, gate, branch);
    const auto same = [&](const NormQuantized& n, const Tensor& want_h, const Tensor& want_u) {
      CHECK(n.h.to_vector() == want_h.to_vector());
      // Sums of a row may be added up in another order: a last bit of the 8 of bf16.
      CHECK(distance(dequantize(n.q).reshape(h.shape()).to(Device::cpu), want_u.to(Device::cpu)) < 0.0625);
      if (!n.u) return;
      CHECK(distance(n.u.to(Device::cpu), want_u.to(Device::cpu)) <= 1.0 / 256);
      const QuantizedMatrix q = quantize(n.u, Format::fp8);
      CHECK(n.q.codes.to_vector() == q.codes.to_vector());
      CHECK(n.q.scales.to_vector() == q.scales.to_vector());
    };
    const ResidualNorm both = gate_residual_norm(h, gate, branch, shift, scale);
    same(norm_quantize(h, gate, branch, shift, scale, 1e-6, true), both.h, both.u);
    same(norm_quantize(h, gate, branch, shift, scale, 1e-6, false), both.h, both.u);
    same(norm_quantize(h, gate, branch, {}, {}, 1e-6, false), sum, sum);
    same(norm_quantize(h, {}, {}, shift, scale, 1e-6, true), h, layer_norm_modulate(h, shift, scale));
  }
}
