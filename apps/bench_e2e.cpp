// rivulet bench-e2e: frames in, frames out: LTX-2's encoder, four denoising passes and the pass that writes the
// memory, and the causal decoder, with random weights, on one GPU, one chunk of 24 frames after the other.
#include <array>
#include <cmath>
#include <cstdio>

#include "apps/commands.h"
#include "apps/frames.h"
#include "apps/gpu_times.h"
#include "models/flow.h"
#include "models/ltx2_vae/vae_stream.h"
#include "models/sana_streaming/dit_stream.h"
#include "ops/elementwise.h"
#include "ops/gemm_choices.h"
#include "ops/reduce.h"
#include "tensor/cuda.h"

namespace rivulet {
namespace {

constexpr int64_t kChunk = 24;        // frames
constexpr double kSourceRate = 24.0;  // frames per second of the camera that the latency is given for

// The moments of one chunk: start, encoded, denoised, decoded, remembered.
using Moments = std::array<CudaEvent, 5>;

struct Times {
  std::vector<double> encode, denoise, decode, cache, chunk, latency;
  explicit Times(const std::vector<Moments>& chunks) {
    for (const Moments& at : chunks) {
      encode.push_back(at[0].milliseconds_to(at[1]));
      denoise.push_back(at[1].milliseconds_to(at[2]));
      decode.push_back(at[2].milliseconds_to(at[3]));
      cache.push_back(at[3].milliseconds_to(at[4]));
      latency.push_back(at[0].milliseconds_to(at[3]));
      chunk.push_back(at[0].milliseconds_to(at[4]));
    }
  }
};

class Pipeline {
 public:
  Pipeline(const PackedVae& vae, const FusedDit& dit, const FrameSize& size, int64_t text_tokens)
      : vae_(vae, {.height = size.height, .width = size.width, .most_latents = 3}),
        dit_(dit, {.height = size.height / vae.config().spatial(),
                   .width = size.width / vae.config().spatial(),
                   .first_frames = 3}) {
    const Tensor text = randn({1, text_tokens, dit.dit.config().caption_channels}, rng_, DType::f32, Device::cuda);
    dit_.set_text(text, ones({1, text_tokens}, DType::u8));
  }

  // The edited frames. They are shown before the pass that writes the memory, which nobody waits for.
  Tensor chunk(const Tensor& frames, const Moments& at) {
    at[0].record();
    const Tensor source = vae_.encode(frames);
    at[1].record();
    dit_.begin_chunk(source);
    const Tensor noise = randn(source.shape(), rng_, DType::f32, Device::cuda);
    size_t step = 0;
    const auto velocity = [&](const Tensor& x, double, double) { return dit_.velocity(x, step++); };
    const Tensor clean = sample(velocity, noise, {}, rng_);
    at[2].record();
    const Tensor shown = vae_.decode(clean);
    at[3].record();
    dit_.end_chunk(clean);
    at[4].record();
    return shown;
  }
  bool replays() const { return dit_.replays(); }

 private:
  Rng rng_{17};
  VaeStream vae_;
  DitStream dit_;
};

Tensor synthetic(int64_t frames, const FrameSize& size, Rng& rng) {
  return rand_uniform({frames, size.height, size.width, 3}, 0, 256, rng, DType::f32, Device::cuda).to(DType::u8);
}

int bench(const BenchE2eOptions& o, Json report) {
  const FrameSize size = parse_size(o.size);
  Rng rng{1};
  PackedVae vae(ltx2_vae_config(), DType::bf16, Device::cuda);
  vae.fill_random(rng);
  FusedDit dit(DitConfig{}, DType::bf16, Device::cuda);
  dit.fill_random(rng);
  cuda_trim();
  const int64_t weights = cuda_memory().now;
  Pipeline pipeline(vae, dit, size, o.text_tokens);
  const Tensor first = synthetic(2 * vae.config().temporal() + 1, size, rng);
  pipeline.chunk(first, {});
  cuda_trim();
  const Tensor frames = synthetic(kChunk, size, rng);
  constexpr int64_t kWarmUp = 6;  // chunks: the window fills, the graphs are made
  for (int64_t i = 0; i < kWarmUp; ++i) pipeline.chunk(frames, {});
  check(pipeline.replays(), "bench-e2e: no pass was replayed from a graph");
  std::vector<Moments> moments(static_cast<size_t>(o.chunks));
  Tensor shown;
  for (const Moments& at : moments) shown = pipeline.chunk(frames, at);
  const Times times(moments);
  const double all = moments.front()[0].milliseconds_to(moments.back()[4]), fps = double(kChunk * o.chunks) / all * 1e3,
               latency = quantile(times.latency, 0.5),
               waiting = double(kChunk - 1) / kSourceRate * 1e3;
  const double brightness = mean(shown.to(DType::f32), {0, 1, 2, 3}).item();
  check(std::isfinite(brightness), "bench-e2e: pixels that are not finite");
  Json stages;
  const double total = quantile(times.chunk, 0.5);
  std::printf("%-24s %9s %9s %7s\n", "stage of 24 frames", "ms", "p99 ms", "share");
  for (const auto& [name, series] :
       {std::pair{"encode", &times.encode}, {"denoise (4 passes)", &times.denoise}, {"decode", &times.decode},
        {"memory (1 pass)", &times.cache}, {"all", &times.chunk}}) {
    Json row = times_json(*series);
    row["share"] = quantile(*series, 0.5) / total;
    std::printf("%-24s %9.2f %9.2f %6.1f%%\n", name, quantile(*series, 0.5), quantile(*series, 0.99),
                100 * row["share"].get<double>());
    stages[name] = row;
  }
  std::printf(
      "%.1f frames per second; a chunk's frames are shown %.0f ms after its last one came, its first one %.0f ms "
      "after it came itself at %.0f frames per second\n",
      fps, latency, latency + waiting, kSourceRate);
  std::printf("memory: weights %.2f GB, tensors %.2f GB at most\n", double(weights) * 1e-9,
              double(cuda_memory().peak) * 1e-9);
  report["stages"] = stages;
  report["fps"] = fps;
  report["latency_ms"] = times_json(times.latency);
  report["glass_to_glass_ms"] = {{"source_fps", kSourceRate}, {"first_frame", latency + waiting}, {"last_frame", latency}};
  report["weight_bytes"] = weights;
  report["peak_tensor_bytes"] = cuda_memory().peak;
  report["gpu_bytes_in_use"] = cuda_bytes_in_use();
  if (!o.json.empty()) write_file(o.json, report.dump(1) + "\n");
  return 0;
}

}  // namespace

int run_bench_e2e(const BenchE2eOptions& o) {
  check(cuda_available(), "bench-e2e: needs a GPU and a build with CUDA kernels for it");
  if constexpr (kHasCuda) {
    const std::string name = cuda::device_name();
    const int64_t library = cuda::cublaslt_version();
    GemmChoices choices(o.gemm_cache.empty() ? GemmChoices::default_path(name, library) : o.gemm_cache, name,
                        library);
    const GemmScope use(choices);
    const int code = bench(o, {{"what", "rivulet bench-e2e"},
                               {"commit", RIVULET_COMMIT},
                               {"gpu", name},
                               {"cuda_driver", cuda::driver_version()},
                               {"weights", "random"},
                               {"dtype", "bf16"},
                               {"size", o.size},
                               {"frames_per_chunk", kChunk},
                               {"text_tokens", o.text_tokens}});
    choices.save();
    return code;
  }
  return 2;
}

}  // namespace rivulet
