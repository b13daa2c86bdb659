#include "models/golden.h"

#include <cmath>
#include <limits>

#include "models/flow.h"
#include "models/golden_gemma2.h"
#include "models/golden_vae.h"
#include "models/sana_streaming/dit.h"
#include "nn/module.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

// Tolerances of dit.md section 11 for an f32 implementation.
constexpr double kVelocity = 2e-5, kFinal = 5e-6, kBlock = 2e-6, kGradient = 5e-5, kLoss = 2e-6;
constexpr double kRoundingSlack = 1.5;

// A golden file whose tensors are handed out on one device.
struct Golden {
  const SafeTensors& file;
  Device device;
  DType dtype;  // of the parameters
  Tensor operator()(const std::string& name) const { return file.get(name).to(device); }
};

void compare(GoldenRow& row, const std::string& name, const Tensor& ours, const Tensor& theirs) {
  const double e = relative_error(ours, theirs);
  ++row.compared;
  if (e >= row.worst) {
    row.worst = e;
    row.worst_name = name;
  }
}

// Sizes: `info` in the header gives those that no tensor shows, the tensors give the rest.
DitConfig dit_config(const SafeTensors& file, const std::string& variant) {
  const auto info = file.metadata().find("info");
  check(info != file.metadata().end(), file.path(), ": the header has no 'info'");
  const Json j = parse_json(info->second, file.path() + ": info");
  DitConfig c;
  c.variant = variant;
  try {
    c.depth = j.at("depth").get<int64_t>();
    c.width = j.at("hidden").get<int64_t>();
    c.heads = j.at("heads").get<int64_t>();
    c.softmax_blocks = j.at("softmax_layers").get<std::vector<int64_t>>();
    c.chunk_frames = j.at("chunk").get<int64_t>();
  } catch (const Json::exception& e) {
    fail(file.path(), ": info: ", e.what());
  }
  c.latent_channels = file.get("in.source").dim(1);
  c.caption_channels = file.get("in.text").dim(3);
  c.mlp_ratio = file.get("weights.blocks.0.mlp.inverted_conv.conv.weight").dim(0) / (2 * c.width);
  return c;
}

Dit load_dit(const Golden& golden, const std::string& variant) {
  Dit dit(dit_config(golden.file, variant), golden.device);
  load_tensors(named_tensors(dit), golden.file, "weights.");
  convert(dit, golden.dtype);
  return dit;
}

TextContext text_of(const Dit& dit, const Golden& golden) {
  return dit.text_context(golden("in.text").select(1, 0), golden("in.mask").to(DType::u8));
}

std::vector<GoldenRow> run_streaming(const Golden& golden) {
  const NoGrad off;
  const Dit dit = load_dit(golden, "streaming");
  const TextContext text = text_of(dit, golden);
  const Json info = parse_json(golden.file.metadata().at("info"), golden.file.path());
  const auto bounds = info.at("chunks").get<std::vector<int64_t>>();
  GoldenRow calls{"network calls", 0, 0, "", kVelocity}, final{"final latents", 0, 0, "", kFinal};
  int64_t call = 0;
  const auto check_call = [&](const Tensor& v) {
    char name[32];
    std::snprintf(name, sizeof name, "stream.v.%03d", int(call++));
    compare(calls, name, v, golden(name));
  };
  StreamState state;
  Tensors out;
  for (size_t c = 0; c + 1 < bounds.size(); ++c) {
    const Tensor source = golden("in.source").slice(2, bounds[c], bounds[c + 1]);
    const auto velocity = [&](const Tensor& x, double t, double) {
      const Tensor v = dit(cat({x, source}, 1), full({1}, t, DType::f32, golden.device), text, &state);
      check_call(v);
      return v;
    };
    Rng unused;
    const Tensor x0 = sample(velocity, golden("in.noise").slice(2, bounds[c], bounds[c + 1]), {}, unused);
    out.push_back(x0);
    if (c + 2 == bounds.size()) break;  // nothing reads the memory after the last chunk
    StreamState next;
    check_call(dit(cat({x0, source}, 1), zeros({1}, DType::f32, golden.device), text, &state, &next));
    state = next;
  }
  compare(final, "stream.out", cat(out, 2), golden("stream.out"));
  return {calls, final};
}

std::vector<GoldenRow> run_bidirectional(const Golden& golden) {
  Dit dit = load_dit(golden, "bidirectional");
  const NamedTensors parameters = named_tensors(dit);
  set_requires_grad(parameters, true);
  GoldenRow blocks{"blocks", 0, 0, "", kBlock}, output{"output", 0, 0, "", kVelocity},
      loss_row{"loss", 0, 0, "", kLoss}, gradients{"gradients", 0, 0, "", kGradient};
  const auto hook = [&](int64_t i, const Tensor& h) {
    const std::string name = "block." + std::to_string(i);
    compare(blocks, name, h, golden(name));
  };
  const Tensor x = cat({golden("in.x"), golden("in.source")}, 1);
  const Tensor v = dit(x, golden("in.t"), text_of(dit, golden), nullptr, nullptr, hook);
  compare(output, "v", v, golden("v"));
  const Tensor loss = mse_loss(v.to(DType::f32), golden("in.target"));
  compare(loss_row, "loss", loss.reshape({1}), golden("loss"));
  backward(loss);
  Tensors ours, theirs;
  for (const auto& [name, p] : parameters) {
    if (!golden.file.contains("grad." + name)) continue;
    ours.push_back((p.grad().defined() ? p.grad() : zeros_like(p)).to(Device::cpu).to(DType::f32));
    theirs.push_back(golden.file.get("grad." + name));
    if (!is_half(golden.dtype)) compare(gradients, name, ours.back(), theirs.back());
  }
  if (is_half(golden.dtype)) {
    for (Tensors* list : {&ours, &theirs})
      for (Tensor& t : *list) t = t.contiguous().reshape({t.numel()});
    compare(gradients, "all gradients", cat(ours, 0), cat(theirs, 0));
  }
  return {output, blocks, loss_row, gradients};
}

}  // namespace

double relative_error(const Tensor& ours, const Tensor& theirs) {
  check(ours.shape() == theirs.shape(), "golden: our shape ", ours.shape(), ", theirs ", theirs.shape());
  const auto a = ours.detach().to_vector(), b = theirs.detach().to_vector();
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

std::vector<GoldenRow> run_golden(const SafeTensors& file, Device device, DType dtype) {
  const Golden golden{file, device, dtype};
  const bool dit = file.contains("weights.x_embedder.proj.weight");
  std::vector<GoldenRow> rows;
  if (dit && file.contains("stream.out")) rows = run_streaming(golden);
  if (dit && file.contains("loss")) rows = run_bidirectional(golden);
  if (is_ltx2_vae_golden(file)) rows = run_ltx2_vae_golden(file, device, dtype);
  if (is_gemma2_golden(file)) rows = run_gemma2_golden(file, device, dtype);
  if (is_taeltx2_golden(file)) rows = run_taeltx2_golden(file, device, dtype);
  if (is_half(dtype) && device != Device::cpu) {
    const auto rounded = run_golden(file, Device::cpu, dtype);
    for (size_t i = 0; i < rows.size(); ++i) rows[i].tolerance = kRoundingSlack * rounded[i].worst;
  }
  return rows;
}

}  // namespace rivulet
