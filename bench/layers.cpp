// The pieces of the 2B network that the reference was timed on, at the reference's shapes and dtypes.
#include <cmath>
#include <cstdio>

#include "bench/gpu.h"
#include "bench/gpu_timing.h"
#include "bench/report.h"
#include "models/sana_streaming/fused_dit.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/gdn_decay.h"
#include "ops/gdn_fused.h"
#include "ops/gemm_choices.h"
#include "ops/parity.h"
#include "ops/rope.h"
#include "tensor/autograd.h"
#include "tensor/cuda.h"

namespace rivulet::bench {
namespace {

constexpr int64_t kHeight = 22, kWidth = 40, kTokens = kHeight * kWidth;
constexpr double kBf16 = 2;  // bytes

// One delta-net block with random weights, and T frames of input.
struct Layer {
  FusedDit model;
  int64_t T, C, nH, D;
  Tensor u, cos, sin;
  GdnState start;

  static DitConfig one_block() {
    DitConfig c;
    c.depth = 1;
    c.softmax_blocks = {};
    return c;
  }
  Layer(int64_t T, Rng& rng) : model(one_block(), DType::bf16, Device::cuda), T(T) {
    model.fill_random(rng);
    C = model.dit.config().width;
    nH = model.dit.config().heads;
    D = C / nH;
    const auto normal = [&](const Shape& s, DType dtype) { return randn(s, rng, dtype, Device::cuda); };
    u = normal({1, T, kTokens, C}, DType::bf16);
    const auto [c, s] = rope_table(0, T, kHeight, kWidth, D);
    cos = c.to(Device::cuda);
    sin = s.to(Device::cuda);
    start = {normal({1, nH, D, D}, DType::f32) * (1 / std::sqrt(double(D))),
             rand_uniform({1, nH, D}, 0.5, 1, rng, DType::f32).to(Device::cuda)};
  }
  GdnAttention& gdn() { return model.dit.blocks[0].gdn; }
  double tokens() const { return double(T * kTokens); }

  // As the stream runs it.
  Tensor fused(GdnState* end) {
    const NoGrad off;
    const GdnResult r = delta_net_layer(gdn(), model.blocks[0], u, cos, sin, start);
    if (end) *end = r.final;
    return gdn().proj(r.out);
  }
  // q|k|v|gate and the output projection; the rates; the delta net itself as in ops/gdn_fused.
  Counts layer_counts() const {
    const double n = tokens(), c = double(C), d = double(D), h = double(nH);
    const double products = 2 * n * c * (5 * c + 2 * h),
                 net = n * h * d * (8 * d + 2) + T * h * 4 * d * d * d;
    return {kBf16 * (2 * n * c + 5 * c * c) + 8 * h * d * (d + 1), products + net};
  }
};

double relative_error(const Tensor& got, const Tensor& want) {
  const Tensor difference = got.to(DType::f32) - want;
  double d = 0, w = 0;
  for (double v : difference.to_vector()) d += v * v;
  for (double v : want.to_vector()) w += v * v;
  return std::sqrt(d / w);
}

// The layer in f32 with the same numbers, by the plain layer; bf16 may differ by the rounding of its
// operands. Says what is wrong, or nothing.
std::string wrong_layer(Layer& layer) {
  constexpr double kTolerance = 2e-2;
  const NoGrad off;
  GdnAttention plain(layer.C, layer.nH, Device::cuda);
  const NamedTensors from = named_tensors(layer.gdn()), to = named_tensors(plain);
  for (size_t i = 0; i < to.size(); ++i)
    to[i].second.copy_from(from[i].second.detach().reshape(to[i].second.shape()));
  const Grid grid{layer.T, kHeight, kWidth, 0};
  GdnState want_end, end;
  const Tensor want = plain(layer.u.to(DType::f32), grid, {layer.cos, layer.sin}, layer.start, &want_end);
  const Tensor got = layer.fused(&end);
  char line[160] = "";
  const double out = relative_error(got, want), kv = relative_error(end.kv, want_end.kv);
  std::printf("  against the plain layer in f32: output %.1e, state %.1e\n", out, kv);
  if (!(out <= kTolerance && kv <= kTolerance))
    std::snprintf(line, sizeof line, "off by %.1e, its state by %.1e, from the plain layer in f32", out, kv);
  return line;
}

class Rows {
 public:
  Rows(int repetitions, int& red) : repetitions_(repetitions), red_(red) {
    best_ = measure_ceilings(DType::bf16, flush_);
    file_ = gpu_result_file(DType::bf16);
    file_["copy_gb_s"] = best_.copy_gb_s;
    file_["gemm_tflop_s"] = best_.gemm_tflop_s;
    std::printf("%s: copies %.0f GB/s, products %.0f TFLOP/s\n", file_["gpu"].get<std::string>().c_str(),
                best_.copy_gb_s, best_.gemm_tflop_s);
    print_head();
  }
  // `wrong` is what a check of the results found.
  void add(const std::string& name, const std::string& wrong, const Counts& counts,
           const std::function<void()>& f) {
    if (wrong.empty()) {
      file_["rows"].push_back(time_work(name, f, counts, repetitions_, flush_, best_));
      return;
    }
    ++red_;
    std::printf("%10s %s: %s\n", "RED", name.c_str(), wrong.c_str());
    file_["rows"].push_back({{"name", name}, {"red", wrong}});
  }
  const nlohmann::json& file() const { return file_; }

 private:
  Flush flush_;
  Ceilings best_;
  int repetitions_;
  int& red_;
  nlohmann::json file_;
};

// Empty when the op agrees with f64 on the CPU on its check shapes.
std::string wrong_op(const OpCase& op) {
  const ParityRow row = check_parity(op, Device::cuda, DType::bf16, false);
  return row.passed() ? "" : to_string(row);
}

void add_layer(Rows& rows, int64_t T, bool train, Rng& rng) {
  Layer layer(T, rng);
  const std::string frames = std::to_string(T) + " frames", wrong = wrong_layer(layer);
  rows.add("gdn layer, " + frames + ", state in and out", wrong, layer.layer_counts(),
           [&] { layer.fused(nullptr); });
  const FusedBlock& block = layer.model.blocks[0];
  {
    // Inside of the layer: between the products.
    const NoGrad off;
    const Tensor p = linear(layer.u, block.qkvg, block.qkvg_bias);
    const Tensor rates = p.slice(3, 4 * layer.C, 4 * layer.C + 2 * layer.nH);
    const Tensor decay =
        gdn_decay(rates.slice(3, layer.nH, 2 * layer.nH), layer.gdn().dt_bias, layer.gdn().A_log);
    const auto part = [&](int64_t i) { return p.slice(3, i * layer.C, (i + 1) * layer.C); };
    const GdnFusedInputs in{part(0),
                            part(1),
                            part(2),
                            part(3),
                            layer.gdn().q_norm.weight,
                            layer.gdn().k_norm.weight,
                            layer.cos,
                            layer.sin,
                            rates.slice(3, 0, layer.nH),
                            decay,
                            layer.start};
    const double key_scale = 1 / std::sqrt(double(layer.D * kTokens)), n = layer.tokens(),
                 d = double(layer.D);
    const Counts counts{kBf16 * 5 * n * double(layer.C) + 8 * double(layer.nH) * d * (d + 1),
                        n * double(layer.nH) * d * (8 * d + 2) + double(T * layer.nH) * 4 * d * d * d};
    rows.add("gdn inner, " + frames + ", state in and out", wrong, counts, [&] { gdn_fused(in, key_scale); });
  }
  if (!train) return;
  rows.add("gdn inner, " + frames + ", forward and backward", wrong_op(gdn_fused_case()), {},
           op_work(gdn_fused_case(), gdn_fused_case().bench[1], DType::bf16, true));
  // As training runs it: the plain layer with its parameters in bf16.
  GdnAttention& gdn = layer.gdn();
  set_requires_grad(named_tensors(gdn), true);
  const Tensor u = layer.u.detach().set_requires_grad(),
               dy = randn(u.shape(), rng, DType::bf16, Device::cuda);
  const Grid grid{T, kHeight, kWidth, 0};
  rows.add("gdn layer, " + frames + ", forward and backward", wrong, {}, [&] {
    for (auto [name, p] : named_tensors(gdn)) p.set_grad({});
    backward(gdn(u, grid, {layer.cos, layer.sin}, {}, nullptr), dy);
  });
}

// Queries of a chunk against the keys of the window, in segments.
void add_attention(Rows& rows, const Shapes& shapes, Rng& rng) {
  constexpr double kTolerance = 1e-2;
  const OpCase& op = attention_segments_case();
  const NoGrad off;
  Tensors inputs, wide;
  int64_t keys = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    inputs.push_back(randn(shapes[i], rng, DType::bf16, Device::cuda));
    wide.push_back(inputs[i].to(DType::f32));
    if (i % 2 == 1) keys += shapes[i][1];
  }
  const double error = relative_error(op.run(inputs)[0], op.run(wide)[0]);
  std::printf("  against f32: %.1e\n", error);
  rows.add("attention, " + std::to_string(shapes[0][1]) + " queries, " + std::to_string(keys) + " keys",
           error <= kTolerance ? "" : "off by " + std::to_string(error) + " from f32",
           {op.bytes(shapes) * kBf16 / 4, op.flops(shapes)}, [&] { op.run(inputs); });
}

}  // namespace

nlohmann::json time_layers(int repetitions, int& red) {
  check(cuda_available(), "rivulet-bench: this machine has no GPU that the kernels run on");
  if constexpr (kHasCuda) {
    GemmChoices choices("", cuda::device_name(), cuda::cublaslt_version());
    const GemmScope use(choices);
    Rows rows(repetitions, red);
    Rng rng{3};
    add_layer(rows, 3, false, rng);
    add_layer(rows, 11, true, rng);
    for (const Shapes& shapes : attention_segments_case().bench) add_attention(rows, shapes, rng);
    return rows.file();
  }
  return {};
}

}  // namespace rivulet::bench
