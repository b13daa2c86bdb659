// rivulet bench-dit: how fast the streaming transformer runs on this machine's GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "apps/commands.h"
#include "apps/dit_costs.h"
#include "apps/frames.h"
#include "models/flow.h"
#include "models/golden.h"
#include "models/sana_streaming/dit_stream.h"
#include "nn/config.h"
#include "ops/elementwise.h"
#include "ops/gemm_choices.h"
#include "ops/modulate.h"
#include "ops/norm_quantize.h"
#include "ops/reduce.h"
#include "ops/residual_norm.h"
#include "ops/shape.h"
#include "tensor/cuda.h"
#include "tensor/cuda_event.h"

namespace rivulet {
namespace {

constexpr int64_t kPixelsPerLatent = 32, kFramesPerLatent = 8;

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * double(values.size() - 1);
  const size_t low = size_t(at), high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - double(low)) * (values[high] - values[low]);
}

Json summary(const std::vector<double>& ms) {
  return {{"count", ms.size()},
          {"median_ms", quantile(ms, 0.5)},
          {"p99_ms", quantile(ms, 0.99)},
          {"min_ms", quantile(ms, 0)},
          {"spread", (quantile(ms, 0.75) - quantile(ms, 0.25)) / 2 / quantile(ms, 0.5)}};
}

// --- The check that comes before any speed ---------------------------------------------------------------

// Four steps and a cache pass for each chunk of a shrunken model, by the plain transformer on the CPU in f32
// and, under the policy, by the stream on the GPU (or by the plain transformer too). The largest relative
// error of a chunk's clean latents.
double shrunken_error(DType dtype, const Policy& policy, bool plainly = false) {
  DitConfig c;
  c.depth = 4;
  c.width = 224;
  c.heads = 2;
  c.softmax_blocks = {1, 3};
  c.latent_channels = 16;
  c.caption_channels = 32;
  constexpr int64_t kHeight = 6, kWidth = 10, kChunks = 6, kFirst = 5;
  Rng rng{7};
  FusedDit reference(c, DType::f32, Device::cpu);
  reference.fill_random(rng);
  // Both start from the same rounded weights.
  for_each_tensor(reference.dit, [&](const std::string&, Tensor& t) { t.copy_from(t.to(dtype)); });
  FusedDit ours(c, dtype, Device::cuda);
  ours.copy_from(reference.dit);
  if (!policy.plain()) ours.pack(policy);
  ours.measure(true);
  DitStream stream(ours, {.height = kHeight, .width = kWidth, .first_frames = kFirst});
  const Tensor text = randn({1, 7, c.caption_channels}, rng), mask = ones({1, 7}, DType::u8);
  stream.set_text(text, mask);
  const TextContext context = reference.dit.text_context(text, mask);
  Dit rounding = reference.dit;
  rounding.precision = policy;
  rounding.rounded = std::make_shared<RoundedWeights>();
  const TextContext rounding_context = rounding.text_context(text, mask);
  StreamState state;
  double worst = 0;
  const NoGrad off;
  for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
    const Shape shape{1, c.latent_channels, chunk == 0 ? kFirst : c.chunk_frames, kHeight, kWidth};
    const Tensor noise = randn(shape, rng), source = randn(shape, rng);
    const auto plain = [&](const Tensor& x, double t, double) {
      return reference.dit(cat({x, source}, 1), full({1}, t), context, &state);
    };
    const Tensor want = sample(plain, noise, {}, rng);
    if (plainly) {
      const auto rounded = [&](const Tensor& x, double t, double) {
        return rounding(cat({x, source}, 1), full({1}, t), rounding_context, &state);
      };
      worst = std::max(worst, relative_error(sample(rounded, noise, {}, rng), want));
    }
    StreamState next;
    reference.dit(cat({want, source}, 1), zeros({1}), context, &state, &next);
    state = next;
    if (plainly) continue;
    if (chunk == 1) ours.measure(false);
    stream.begin_chunk(source.to(Device::cuda));
    size_t step = 0;
    const auto fast = [&](const Tensor& x, double, double) { return stream.velocity(x, step++); };
    const Tensor got = sample(fast, noise.to(Device::cuda), {}, rng);
    stream.end_chunk(want.to(Device::cuda));  // errors of a chunk are its own
    worst = std::max(worst, relative_error(got.to(Device::cpu), want));
  }
  check(plainly || stream.replays(), "bench-dit: the shrunken stream made no graph");
  return worst;
}

// f32: what sums in another order lose. bf16: roundings of 2^-9 at some ten places of each of four blocks,
// through four steps.
constexpr double kTolerance32 = 1e-4, kTolerance16 = 3e-2;

Json check_outputs() {
  const double f32 = shrunken_error(DType::f32, {}), bf16 = shrunken_error(DType::bf16, {});
  std::printf("shrunken model against the CPU in f32: f32 %.1e (at most %.0e), bf16 %.1e (at most %.0e)\n",
              f32, kTolerance32, bf16, kTolerance16);
  return {{"f32_error", f32},
          {"f32_tolerance", kTolerance32},
          {"bf16_error", bf16},
          {"bf16_tolerance", kTolerance16},
          {"passed", f32 <= kTolerance32 && bf16 <= kTolerance16}};
}

// The policy's rules on every block, since the shrunken model has few. Two sets of roundings of one kind
// differ from the exact result by about as much; wrong ones by more.
Json check_policy(Policy policy) {
  for (Policy::Rule& rule : policy.rules) rule.blocks.clear();
  const double effect = shrunken_error(DType::bf16, policy, /*plainly=*/true),
               error = shrunken_error(DType::bf16, policy), most = 1.5 * effect + kTolerance16;
  std::printf(
      "under the policy: %.1e by the plain transformer on the CPU, %.1e by the stream (at most %.1e)\n",
      effect, error, most);
  return {{"plain_error", effect}, {"error", error}, {"tolerance", most}, {"passed", error <= most}};
}

// --- What the machine can do at best -----------------------------------------------------------------------

double best_ms(int repetitions, const std::function<void()>& work) {
  double best = std::numeric_limits<double>::infinity();
  const CudaEvent begin, end;
  for (int i = 0; i < repetitions; ++i) {
    begin.record();
    work();
    end.record();
    best = std::min(best, begin.milliseconds_to(end));
  }
  return best;
}

struct Ceilings {
  double copy_gb_s, gemm_tflop_s;
};

Ceilings measure_ceilings() {
  constexpr int64_t kCopy = int64_t(1) << 30, kSide = 8192;
  double copy_ms = 0, gemm_ms = 0;
  {
    const Tensor from = zeros({kCopy}, DType::u8, Device::cuda), to = empty_like(from);
    copy_ms = best_ms(8, [&] { to.copy_from(from); });
  }
  {
    Rng rng{3};
    const Tensor a = randn({kSide, kSide}, rng, DType::bf16, Device::cuda),
                 b = randn({kSide, kSide}, rng, DType::bf16, Device::cuda);
    gemm_ms = best_ms(8, [&] { linear(a, b); });
  }
  return {2e-6 * double(kCopy) / copy_ms, 2e-9 * std::pow(double(kSide), 3) / gemm_ms};
}

// --- What rounding costs beside the products ---------------------------------------------------------------

// Milliseconds of one denoising pass spent on rounding activations to rows of E4M3: each as it runs in the
// stream, the fused ones against the same op without the rounding. On tensors in use in turn, as between
// layers.
Json quantising(const FusedDit& model, const FrameSize& size) {
  const int64_t S = size.width / kPixelsPerLatent * (size.height / kPixelsPerLatent),
                T = model.dit.config().chunk_frames, C = model.dit.config().width, N = T * S;
  Rng rng{5};
  const auto make = [&](int64_t rows, int64_t cols) {
    return randn({1, T, rows / T, cols}, rng, DType::bf16, Device::cuda);
  };
  constexpr int kTurns = 4, kRuns = 20;
  const auto us = [&](const std::function<void(int)>& work) {
    return 1e3 *
           best_ms(5,
                   [&] {
                     for (int i = 0; i < kRuns; ++i) work(i % kTurns);
                   }) /
           kRuns;
  };
  std::vector<Tensor> narrow, wide, frame;
  for (int i = 0; i < kTurns; ++i) {
    narrow.push_back(make(N, C));
    wide.push_back(make(N, model.dit.config().mlp_ratio * C));
    frame.push_back(make(S / T * T, C));
  }
  const Tensor gate = randn({1, 1, 1, C}, rng, DType::bf16, Device::cuda), shift = gate.clone(),
               scale = gate.clone();
  const bool scaled = model.policy().has_static_scales();
  const Tensor given = scaled ? full({1}, 0.02, DType::f32, Device::cuda) : Tensor();
  const auto rows = [&](const std::vector<Tensor>& x) {
    return us([&](int i) { quantize(x[size_t(i)], scaled ? Format::fp8_tensor : Format::fp8, given); });
  };
  const double row_us = rows(narrow), wide_us = rows(wide), frame_us = rows(frame);
  const auto other = [&](int i) { return narrow[size_t((i + 1) % kTurns)]; };
  const double residual = us([&](int i) { gate_residual(narrow[size_t(i)], gate, other(i)); }),
               residual_q = us([&](int i) {
                 norm_quantize(narrow[size_t(i)], gate, other(i), {}, {}, 1e-6, false, given);
               }),
               norm = us([&](int i) { layer_norm_modulate(narrow[size_t(i)], shift, scale); }),
               norm_q = us([&](int i) {
                 norm_quantize(narrow[size_t(i)], {}, {}, shift, scale, 1e-6, false, given);
               }),
               both = us([&](int i) { gate_residual_norm(narrow[size_t(i)], gate, other(i), shift, scale); }),
               both_q = us([&](int i) {
                 norm_quantize(narrow[size_t(i)], gate, other(i), shift, scale, 1e-6, true, given);
               });
  double total = 0;
  const auto reads = [](const PackedLayer& l) { return l.packed() && !l.choice.weight_only; };
  for (const FusedBlock& b : model.blocks) {
    if (b.codes_reader()) total += both_q - both;
    if (b.at(Layer::ca_q).reads_codes()) total += residual_q - residual;
    if (b.at(Layer::ffn_in).reads_codes()) total += norm_q - norm;
    for (const Layer layer : {Layer::sa_o, Layer::ca_o, Layer::ffn_t})
      if (reads(b.at(layer))) total += row_us;
    if (reads(b.at(Layer::ffn_out))) total += wide_us;
    if (reads(b.at(Layer::ffn_t))) total += frame_us;
  }
  std::printf(
      "rounding: %.1f us a [%lld, %lld], %.1f us a [%lld, %lld]; fused: residual %.1f -> %.1f, norm %.1f -> "
      "%.1f, "
      "residual and norm %.1f -> %.1f us; %.3f ms a pass\n",
      row_us, static_cast<long long>(N), static_cast<long long>(C), wide_us, static_cast<long long>(N),
      static_cast<long long>(model.dit.config().mlp_ratio * C), residual, residual_q, norm, norm_q, both,
      both_q, 1e-3 * total);
  return {
      {"rows_us", row_us},         {"wide_rows_us", wide_us},           {"frame_us", frame_us},
      {"residual_us", residual},   {"residual_rounded_us", residual_q}, {"norm_us", norm},
      {"norm_rounded_us", norm_q}, {"residual_norm_us", both},          {"residual_norm_rounded_us", both_q},
      {"pass_ms", 1e-3 * total}};
}

// --- The stream ------------------------------------------------------------------------------------------

struct Bench {
  const BenchDitOptions& options;
  FusedDit& model;
  Ceilings ceilings;
  int64_t height, width;  // of the latent grid
};

struct Times {
  std::vector<double> first, first_cache, denoise, cache, chunk;
};

// Runs `chunks` chunks, the last `measured` of which count.
class Run {
 public:
  Run(const Bench& b, int64_t first_frames)
      : b_(b), stream_(b.model, {.height = b.height, .width = b.width, .first_frames = first_frames}) {
    const int64_t channels = b.model.dit.config().caption_channels;
    const Tensor text = randn({1, b.options.text_tokens, channels}, rng_, DType::f32, Device::cuda);
    stream_.set_text(text, ones({1, b.options.text_tokens}, DType::u8));
  }

  DitStream& stream() { return stream_; }

  // One chunk of random latents; times go to `times` when given. Returns the clean latents.
  Tensor chunk(Times* times) {
    const bool is_first = stream_.chunks() == 0;
    const Shape shape{1, b_.model.dit.config().latent_channels, stream_.next_frames(), b_.height, b_.width};
    const Tensor noise = randn(shape, rng_, DType::f32, Device::cuda),
                 source = randn(shape, rng_, DType::f32, Device::cuda);
    std::vector<CudaEvent> at(2 * kSteps + 4);
    size_t step = 0;
    at[0].record();
    stream_.begin_chunk(source);
    const auto velocity = [&](const Tensor& x, double, double) {
      at[1 + 2 * step].record();
      const Tensor v = stream_.velocity(x, step);
      at[2 + 2 * step].record();
      ++step;
      return v;
    };
    const Tensor x0 = sample(velocity, noise, {}, rng_);
    at[2 * kSteps + 1].record();
    stream_.end_chunk(x0);
    at[2 * kSteps + 2].record();
    if (times) {
      auto& passes = is_first ? times->first : times->denoise;
      for (size_t s = 0; s < kSteps; ++s) passes.push_back(at[1 + 2 * s].milliseconds_to(at[2 + 2 * s]));
      (is_first ? times->first_cache : times->cache)
          .push_back(at[2 * kSteps + 1].milliseconds_to(at[2 * kSteps + 2]));
      if (!is_first) times->chunk.push_back(at[0].milliseconds_to(at[2 * kSteps + 2]));
    }
    return x0;
  }

  // Mean milliseconds of every piece of an eager pass, by CUDA events between the pieces.
  std::map<std::string, double> pieces() {
    constexpr int kPasses = 5;
    const Shape shape{1, b_.model.dit.config().latent_channels, stream_.next_frames(), b_.height, b_.width};
    const Tensor x = randn(shape, rng_, DType::f32, Device::cuda);
    const Tensor big = zeros({int64_t(1) << 30}, DType::u8, Device::cuda), other = empty_like(big);
    stream_.begin_chunk(x);
    std::map<std::string, double> total;
    std::vector<CudaEvent> events(1024);
    for (int pass = -1; pass < kPasses; ++pass) {
      std::vector<const char*> names;
      stream_.set_hook([&](const char* name) {
        names.push_back(name);
        events.at(names.size()).record();
      });
      // Work for the GPU while the pass is being given to it: without, the pieces would wait for the CPU.
      for (int i = 0; i < 20; ++i) other.copy_from(big);
      events[0].record();
      stream_.velocity(x, 0);
      stream_.set_hook({});
      if (pass < 0) continue;  // warm-up
      for (size_t i = 0; i < names.size(); ++i)
        total[names[i]] += events[i].milliseconds_to(events[i + 1]) / kPasses;
    }
    stream_.end_chunk(x);
    return total;
  }

  static constexpr size_t kSteps = 4;

 private:
  const Bench& b_;
  Rng rng_{17};
  DitStream stream_;
};

Json table(const Bench& b, const std::map<std::string, double>& pieces, int64_t keys, int64_t tokens,
           int64_t T) {
  const auto costs = pass_costs(b.model.dit.config(), tokens, T, keys, b.options.text_tokens);
  std::vector<std::pair<std::string, double>> order(pieces.begin(), pieces.end());
  std::sort(order.begin(), order.end(), [](const auto& x, const auto& y) { return x.second > y.second; });
  Json rows = Json::array();
  double sum = 0;
  std::printf("%-32s %9s %9s %9s %8s %8s\n", "piece (all blocks)", "ms", "GFLOP", "MB", "% GEMM", "% copy");
  for (const auto& [name, ms] : order) {
    const Cost cost = costs.count(name) ? costs.at(name) : Cost{};
    const double gemm = 100 * cost.flops * 1e-9 / ms / b.ceilings.gemm_tflop_s,
                 copy = 100 * cost.bytes * 1e-6 / ms / b.ceilings.copy_gb_s;
    std::printf("%-32s %9.3f %9.1f %9.1f %8.1f %8.1f\n", name.c_str(), ms, cost.flops * 1e-9,
                cost.bytes * 1e-6, gemm, copy);
    rows.push_back({{"piece", name},
                    {"ms", ms},
                    {"gflop", cost.flops * 1e-9},
                    {"mb", cost.bytes * 1e-6},
                    {"gemm_percent", gemm},
                    {"copy_percent", copy}});
    sum += ms;
  }
  std::printf("%-32s %9.3f\n", "sum", sum);
  return {{"rows", rows}, {"sum_ms", sum}, {"tokens", tokens}, {"keys", keys}};
}

// A stream whose first chunk has `first` frames: its times, pieces and memory.
Json measure(const Bench& b, int64_t first, int64_t chunks) {
  const int64_t T = b.model.dit.config().chunk_frames, S = b.height * b.width;
  constexpr int64_t kWarmUp = 4;  // chunks: the window fills, the graphs are made
  const int64_t keys = (first + 2 * T) * S;
  std::printf("\nstream with a first chunk of %lld frames, %lld keys once the window is full\n",
              static_cast<long long>(first), static_cast<long long>(keys));
  cuda_trim();
  Run run(b, first);
  Times times;
  b.model.measure(!b.model.ready());
  run.chunk(nullptr);  // static scales
  b.model.measure(false);
  run.stream().reset();
  run.chunk(nullptr);  // chooses the algorithms of the products of these shapes
  run.stream().reset();
  run.chunk(&times);
  for (int64_t i = 1; i < kWarmUp; ++i) run.chunk(nullptr);
  const int64_t held = cuda_memory().now;
  for (int64_t i = kWarmUp; i < chunks; ++i) {
    const Tensor x0 = run.chunk(&times);
    if (i % 10 == 0 || i + 1 == chunks) {
      const double size = sum(abs(x0), {0, 1, 2, 3, 4}).item() / double(x0.numel());
      check(std::isfinite(size), "bench-dit: values that are not finite in chunk ", i);
      std::printf("chunk %lld of %lld: denoise %.2f ms, cache %.2f ms, mean |x0| %.3f, %.3f GB\n",
                  static_cast<long long>(i + 1), static_cast<long long>(chunks), quantile(times.denoise, 0.5),
                  quantile(times.cache, 0.5), size, double(cuda_memory().now) * 1e-9);
      std::fflush(stdout);
    }
  }
  const int64_t grown = cuda_memory().now - held;
  check(run.stream().replays(), "bench-dit: no pass was replayed from a graph");
  const double fps = double(kFramesPerLatent * T) / quantile(times.chunk, 0.5) * 1e3;
  std::printf("first chunk pass %.2f ms; denoise %.2f ms (p99 %.2f); cache %.2f ms; %.1f DiT FPS\n",
              quantile(times.first, 0.5), quantile(times.denoise, 0.5), quantile(times.denoise, 0.99),
              quantile(times.cache, 0.5), fps);
  const int64_t peak = cuda_memory().peak, used = cuda_bytes_in_use();
  std::printf(
      "memory: tensors %.3f GB at most, grown by %lld bytes over the stream; scratch %.1f MB; GPU in use "
      "%.3f GB\n",
      double(peak) * 1e-9, static_cast<long long>(grown), double(run.stream().scratch_peak()) * 1e-6,
      double(used) * 1e-9);
  Json out = {{"first_chunk_frames", first},
              {"chunks", chunks},
              {"warm_up_chunks", kWarmUp},
              {"tokens", T * S},
              {"keys", keys},
              {"first_chunk_pass", summary(times.first)},
              {"first_chunk_cache_pass", summary(times.first_cache)},
              {"denoise_pass", summary(times.denoise)},
              {"cache_pass", summary(times.cache)},
              {"chunk", summary(times.chunk)},
              {"dit_fps", fps},
              {"peak_tensor_bytes", peak},
              {"tensor_bytes_grown", grown},
              {"scratch_bytes", run.stream().scratch_peak()},
              {"gpu_bytes_in_use", used}};
  out["pieces"] = table(b, run.pieces(), keys, T * S, T);
  return out;
}

Json gemm_rows(const GemmChoices& choices) {
  Json rows = Json::array();
  for (const auto& [key, c] : choices.all())
    rows.push_back({{"m", key[2]},
                    {"n", key[3]},
                    {"k", key[4]},
                    {"bias", key[15] != 0},
                    {"adds", key[14] != 0},
                    {"best_us", c.best_us},
                    {"first_us", c.first_us},
                    {"configuration", c.configuration}});
  return rows;
}

// The machine, as the report names it.
struct Gpu {
  std::string name, driver;
  int64_t cublaslt;
};

int bench(const BenchDitOptions& o, const Gpu& gpu, GemmChoices& choices) {
  const FrameSize size = parse_size(o.size);
  check(size.width % kPixelsPerLatent == 0 && size.height % kPixelsPerLatent == 0, "bench-dit: the size ",
        o.size, " is not made of multiples of ", kPixelsPerLatent);
  std::printf("%s, driver for CUDA %s, cuBLASLt %lld\n", gpu.name.c_str(), gpu.driver.c_str(),
              static_cast<long long>(gpu.cublaslt));
  if (!choices.ignored().empty()) std::printf("%s\n", choices.ignored().c_str());
  Json report = {{"what", "rivulet bench-dit"}, {"commit", RIVULET_COMMIT}, {"gpu", gpu.name},
                 {"cuda_driver", gpu.driver},   {"cublaslt", gpu.cublaslt}, {"model", o.model},
                 {"weights", "random"},         {"dtype", "bf16"},          {"size", o.size},
                 {"text_tokens", o.text_tokens}};
  report["check"] = check_outputs();
  const Policy policy = o.policy.empty() ? Policy() : Policy::read(o.policy);
  bool passed = report["check"]["passed"].get<bool>();
  if (!policy.plain()) {
    report["policy"] = policy.to_json();
    report["policy_check"] = check_policy(policy);
    passed &= report["policy_check"]["passed"].get<bool>();
  }
  if (!passed) {
    std::printf("RED: the results are wrong, so no speed is given\n");
    if (!o.json.empty()) write_file(o.json, report.dump(1) + "\n");
    return 1;
  }
  const Ceilings ceilings = measure_ceilings();
  std::printf("ceilings: copy %.0f GB/s, GEMM %.0f TFLOP/s\n", ceilings.copy_gb_s, ceilings.gemm_tflop_s);
  report["copy_gb_s"] = ceilings.copy_gb_s;
  report["gemm_tflop_s"] = ceilings.gemm_tflop_s;
  cuda_trim();
  Rng rng{1};
  FusedDit model(DitConfig{}, DType::bf16, Device::cuda);
  model.fill_random(rng);
  if (!policy.plain()) model.pack(policy);
  cuda_trim();
  const int64_t weights = model.weight_bytes();
  std::printf("weights: %.3f GB\n", double(weights) * 1e-9);
  report["weight_bytes"] = weights;
  if (!policy.plain()) report["quantising"] = quantising(model, size);
  const Bench b{o, model, ceilings, size.height / kPixelsPerLatent, size.width / kPixelsPerLatent};
  const int64_t chunks = o.quick ? 8 : o.chunks;
  // The trained stream has a first chunk of five frames; the reference was timed with one of three.
  report["streams"] = {measure(b, 5, chunks), measure(b, 3, std::min<int64_t>(chunks, 20))};
  report["products"] = gemm_rows(choices);
  if (!o.json.empty()) write_file(o.json, report.dump(1) + "\n");
  return 0;
}

}  // namespace

int run_bench_dit(const BenchDitOptions& options) {
  check(options.model == "sana-streaming-2b", "bench-dit: the model '", options.model,
        "' is not sana-streaming-2b");
  check(cuda_available(), "bench-dit: needs a GPU and a build with CUDA kernels for it");
  if constexpr (kHasCuda) {
    const Gpu gpu{cuda::device_name(), cuda::driver_version(), cuda::cublaslt_version()};
    const std::string& cache = options.gemm_cache;
    GemmChoices choices(cache.empty() ? GemmChoices::default_path(gpu.name, gpu.cublaslt) : cache, gpu.name,
                        gpu.cublaslt);
    const GemmScope use(choices);
    const int code = bench(options, gpu, choices);
    choices.save();
    return code;
  }
  return 2;
}

}  // namespace rivulet
