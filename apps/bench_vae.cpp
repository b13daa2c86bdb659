// rivulet bench-vae: how fast LTX-2's video autoencoder, with random weights, streams through this machine's GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "apps/commands.h"
#include "apps/frames.h"
#include "apps/gpu_times.h"
#include "models/golden.h"
#include "models/ltx2_vae/vae_stream.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "tensor/cuda.h"

namespace rivulet {
namespace {

constexpr int64_t kChunk = 24;  // frames

// --- The check that comes before any speed ---------------------------------------------------------------

struct Errors {
  double latents = 0, pixels = 0;
  bool passed() const { return latents <= kTolerance && pixels <= kTolerance; }
  static constexpr double kTolerance = 3e-2;  // some thirty convolutions, each rounding to 2^-9
};

// A narrow model over a stream of three pieces, against the plain model on the CPU in f32.
Errors shrunken_errors() {
  VideoVaeConfig c = ltx2_vae_config();
  c.latent_channels = 16;
  c.encoder_width = 64;
  c.decoder_width = 256;
  constexpr int64_t kEncoder[] = {128, 128, 128, 256}, kDecoder[] = {128, 64, 64};
  for (size_t i = 0; i < c.encoder.size(); ++i) c.encoder[i].width = kEncoder[i], c.encoder[i].layers = 1;
  for (size_t i = 0; i < c.decoder.size(); ++i) c.decoder[i].width = kDecoder[i], c.decoder[i].layers = 1;
  c.encoder_mid_layers = c.decoder_mid_layers = 1;
  Rng rng{7};
  VideoVae vae(c);
  vae.initialise(rng);
  for_each_tensor(vae, [](const std::string&, Tensor& t) { t.copy_from(t.to(DType::bf16)); });
  PackedVae packed(c, DType::bf16, Device::cuda);
  packed.copy_from(vae);
  VaeStream stream(packed, {.height = 64, .width = 96, .most_latents = 1});
  VideoState encoded, decoded;
  Errors worst;
  for (int64_t T : {1, 8, 8}) {
    const Tensor frames = rand_uniform({T, 64, 96, 3}, -1, 1, rng);
    const Tensor want = vae.encode(frames.unsqueeze(0), encoded),
                 z = stream.encode(frames.to(Device::cuda)).to(Device::cpu);
    worst.latents = std::max(worst.latents, relative_error(z, want));
    const Tensor shown = vae.decode(want, decoded).squeeze(0),
                 got = stream.decode(want.contiguous().to(Device::cuda), DType::f32).to(Device::cpu);
    worst.pixels = std::max(worst.pixels, relative_error(got, shown));
  }
  return worst;
}

// --- Predictions -----------------------------------------------------------------------------------------

struct Cost {
  double flops = 0, bytes = 0;  // every activation and weight read and written once
};

// By the names that VaeStream gives its pieces, for T steady latents.
std::map<std::string, Cost> costs(const PackedHalf& half, int64_t T, int64_t h, int64_t w, int64_t p) {
  std::map<std::string, Cost> all;
  const auto add = [&](const std::string& name, const PackedConv& conv, int64_t frames, double outputs) {
    const double positions = double(frames * h * w), n = double(conv.w.dim(0)), c = double(conv.w.dim(4));
    Cost& cost = all[name];
    cost.flops += 2 * positions * n * 27 * c;
    cost.bytes += 2 * (positions * (c + n * outputs) + 27 * n * c);
  };
  const auto label = [](int64_t width, const char* what) { return std::to_string(width) + " " + what; };
  if (half.down) h /= p, w /= p;
  add("conv_in", half.conv_in, T, 2);
  for (const PackedStage& s : half.stages) {
    for (size_t i = 0; i < s.convs.size(); ++i)
      add(label(s.width, i % 2 ? "conv2" : "conv1"), s.convs[i], T, i % 2 ? 3 : 1);  // conv2: x in, x and normed out
    if (!s.sampler) continue;
    add(label(s.width, "sampler"), s.sampler, T, 3);
    const double in = double(T * h * w * s.width);
    all[label(s.width, "skip")].bytes +=
        2 * (in + double(T * h * w) * double(s.sampler.w.dim(0)));
    if (half.down) {
      T /= s.stride[0], h /= s.stride[1], w /= s.stride[2];
    } else {
      T *= s.stride[0], h *= s.stride[1], w *= s.stride[2];
    }
  }
  add("conv_out", half.conv_out, T, 1);
  return all;
}

// Mean milliseconds of every piece, beside what it must at least compute and move.
Json table(const char* title, const std::map<std::string, double>& pieces, const std::map<std::string, Cost>& cost) {
  std::vector<std::pair<std::string, double>> order(pieces.begin(), pieces.end());
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  Json rows = Json::array();
  double sum = 0;
  std::printf("%-32s %9s %9s %9s %9s\n", title, "ms", "GFLOP", "MB", "TFLOP/s");
  for (const auto& [name, ms] : order) {
    const Cost c = cost.count(name) ? cost.at(name) : Cost{};
    std::printf("%-32s %9.3f %9.1f %9.1f %9.1f\n", name.c_str(), ms, c.flops * 1e-9, c.bytes * 1e-6,
                c.flops * 1e-9 / ms);
    rows.push_back({{"piece", name},
                    {"ms", ms},
                    {"gflop", c.flops * 1e-9},
                    {"mb", c.bytes * 1e-6},
                    {"tflop_s", c.flops * 1e-9 / ms}});
    sum += ms;
  }
  std::printf("%-32s %9.3f\n", "sum", sum);
  return {{"rows", rows}, {"sum_ms", sum}};
}

}  // namespace

int run_bench_vae(const BenchVaeOptions& o) {
  check(cuda_available(), "bench-vae: needs a GPU and a build with CUDA kernels for it");
  const FrameSize size = parse_size(o.size);
  Json report = {{"what", "rivulet bench-vae"}, {"commit", RIVULET_COMMIT}, {"weights", "random"},
                 {"dtype", "bf16"},             {"size", o.size},           {"frames_per_chunk", kChunk},
                 {"latents_at_a_time", o.latents}};
  if constexpr (kHasCuda) {
    report["gpu"] = cuda::device_name();
    report["cuda_driver"] = cuda::driver_version();
  }
  const Errors errors = shrunken_errors();
  std::printf("shrunken model against the CPU in f32: latents %.1e, pixels %.1e (at most %.0e)\n", errors.latents,
              errors.pixels, Errors::kTolerance);
  report["check"] = {{"latents_error", errors.latents},
                     {"pixels_error", errors.pixels},
                     {"tolerance", Errors::kTolerance},
                     {"passed", errors.passed()}};
  if (!errors.passed()) {
    std::printf("RED: the results are wrong, so no speed is given\n");
    if (!o.json.empty()) write_file(o.json, report.dump(1) + "\n");
    return 1;
  }
  cuda_trim();
  Rng rng{1};
  PackedVae vae(ltx2_vae_config(), DType::bf16, Device::cuda);
  vae.fill_random(rng);
  cuda_trim();
  VaeStream stream(vae, {.height = size.height, .width = size.width, .most_latents = o.latents});
  const Tensor first = rand_uniform({1, size.height, size.width, 3}, 0, 256, rng, DType::f32, Device::cuda).to(DType::u8);
  const Tensor frames =
      rand_uniform({kChunk, size.height, size.width, 3}, 0, 256, rng, DType::f32, Device::cuda).to(DType::u8);
  stream.decode(stream.encode(first));
  cuda_trim();
  std::vector<double> encode, decode;
  CudaEvent at[3];
  Tensor latents, pixels;
  constexpr int64_t kWarmUp = 3;
  for (int64_t i = -kWarmUp; i < o.chunks; ++i) {
    at[0].record();
    latents = stream.encode(frames);
    at[1].record();
    pixels = stream.decode(latents);
    at[2].record();
    if (i < 0) continue;
    encode.push_back(at[0].milliseconds_to(at[1]));
    decode.push_back(at[1].milliseconds_to(at[2]));
  }
  const double mean_latent = mean(abs(latents), {0, 1, 2, 3, 4}).item();
  check(std::isfinite(mean_latent), "bench-vae: latents that are not finite");
  const int64_t held = cuda_memory().peak - vae.weight_bytes();
  std::printf("24 frames: encode %.2f ms (p99 %.2f), decode %.2f ms (p99 %.2f); mean |z| %.3f\n",
              quantile(encode, 0.5), quantile(encode, 0.99), quantile(decode, 0.5), quantile(decode, 0.99),
              mean_latent);
  std::printf("memory: weights %.3f GB, carried frames %.3f GB, shared %.3f GB; all but the weights %.3f GB\n",
              double(vae.weight_bytes()) * 1e-9, double(stream.state_bytes()) * 1e-9,
              double(stream.scratch_bytes()) * 1e-9, double(held) * 1e-9);
  report["encode"] = times_json(encode);
  report["decode"] = times_json(decode);
  report["weight_bytes"] = vae.weight_bytes();
  report["state_bytes"] = stream.state_bytes();
  report["scratch_bytes"] = stream.scratch_bytes();
  report["peak_bytes_without_weights"] = held;
  report["gpu_bytes_in_use"] = cuda_bytes_in_use();

  const VideoVaeConfig& c = vae.config();
  const int64_t T = kChunk / c.temporal(), s = c.spatial();
  for (const bool decodes : {false, true}) {
    PieceTimes times;
    stream.set_hook([&](const std::string& name) { times.end_piece(name); });
    times.begin();
    if (decodes)
      stream.decode(latents);
    else
      stream.encode(frames);
    const auto cost = decodes ? costs(vae.decoder, T, size.height / s, size.width / s, c.patch)
                              : costs(vae.encoder, kChunk, size.height, size.width, c.patch);
    const char* title = decodes ? "decoder" : "encoder";
    report[title] = table(title, times.sums(), cost);
    stream.set_hook({});
  }
  if (!o.json.empty()) write_file(o.json, report.dump(1) + "\n");
  return 0;
}

}  // namespace rivulet
