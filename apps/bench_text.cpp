// rivulet bench-text: how fast the text encoder's decoder stack runs on this machine's GPU.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "apps/commands.h"
#include "models/gemma2/gemma2.h"
#include "models/golden.h"
#include "ops/elementwise.h"
#include "ops/gemm_choices.h"
#include "tensor/cuda.h"
#include "tensor/cuda_event.h"

namespace rivulet {
namespace {

constexpr double kTolerance32 = 1e-4, kTolerance16 = 3e-2;

// Random weights of a size that keeps the activations' size through the layers. The table of embeddings lies
// in main memory, as in the product.
Gemma2 random_model(const Gemma2Config& config, DType dtype, Rng& rng, Device device) {
  Gemma2 model(config, Device::meta);
  for_each_tensor(model, [&](const std::string&, Tensor& t) {
    const double size = t.dims() == 1 ? 0.1 : 1 / std::sqrt(double(t.dim(1)));
    t = (randn(t.shape(), rng, DType::f32, device) * size).to(dtype);
  });
  model.embedding = model.embedding.to(Device::cpu);
  return model;
}

Tensor random_ids(int64_t n, int64_t vocabulary, Rng& rng) {
  Tensor ids({1, n}, DType::i64);
  for (int64_t i = 0; i < n; ++i) ids.data<int64_t>()[i] = int64_t(rng.uniform() * double(vocabulary));
  return ids;
}

// A shrunken model on the GPU against the CPU in f32.
double shrunken_error(DType dtype) {
  Gemma2Config c;
  c.vocabulary = 300;
  c.width = 288;
  c.depth = 3;
  c.mlp = 512;
  c.window = 40;
  Rng rng{5};
  Gemma2 reference = random_model(c, dtype, rng, Device::cpu);
  convert(reference, DType::f32);
  Gemma2 ours = reference;
  for_each_tensor(ours, [&](const std::string& name, Tensor& t) {
    t = t.to(dtype);
    if (name != "embed_tokens.weight") t = t.to(Device::cuda);
  });
  const Tensor ids = random_ids(100, c.vocabulary, rng);
  return relative_error(ours(ids, {}, true).to(DType::f32), reference(ids, {}, true));
}

struct Times {
  std::vector<double> wall, gpu;
};

// One call to warm up, then `repetitions`: what a caller waits, and what passes on the GPU.
Times time_calls(const Gemma2& model, int64_t tokens, int64_t repetitions) {
  using Clock = std::chrono::steady_clock;
  Rng rng{9};
  Times times;
  for (int64_t i = -1; i < repetitions; ++i) {
    const Tensor ids = random_ids(tokens, model.config().vocabulary, rng);
    const CudaEvent begin, end;
    synchronize(Device::cuda);
    const auto start = Clock::now();
    begin.record();
    const Tensor out = model(ids, {}, false);
    end.record();
    synchronize(Device::cuda);
    const double wall = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    if (i == -1)
      check(std::isfinite(out.slice(1, tokens - 1, tokens).to_vector()[0]), "bench-text: not finite");
    if (i < 0) continue;
    times.wall.push_back(wall);
    times.gpu.push_back(begin.milliseconds_to(end));
  }
  return times;
}

Json summary(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  return {{"count", ms.size()}, {"median_ms", ms[ms.size() / 2]}, {"min_ms", ms[0]}, {"max_ms", ms.back()}};
}

Json rows(const Gemma2& model, const BenchTextOptions& o, const std::string& products) {
  Json list = Json::array();
  for (const int64_t tokens : {int64_t(407), int64_t(122)}) {
    const Times times = time_calls(model, tokens, o.repetitions);
    const Json wall = summary(times.wall), gpu = summary(times.gpu);
    std::printf("%lld tokens, %s: %.2f ms (GPU %.2f ms), at best %.2f ms\n", static_cast<long long>(tokens),
                products.c_str(), wall["median_ms"].get<double>(), gpu["median_ms"].get<double>(),
                wall["min_ms"].get<double>());
    list.push_back({{"tokens", tokens}, {"products", products}, {"wall", wall}, {"gpu", gpu}});
  }
  return list;
}

int bench(const BenchTextOptions& o, GemmChoices& choices) {
  const NoGrad off;
  Json report = {{"what", "rivulet bench-text"},
                 {"commit", RIVULET_COMMIT},
                 {"gpu", cuda::device_name()},
                 {"cuda_driver", cuda::driver_version()},
                 {"cublaslt", cuda::cublaslt_version()},
                 {"model", "gemma-2-2b-it"},
                 {"weights", "random"},
                 {"dtype", "bf16"}};
  const double f32 = shrunken_error(DType::f32), bf16 = shrunken_error(DType::bf16);
  const bool passed = f32 <= kTolerance32 && bf16 <= kTolerance16;
  report["check"] = {{"f32", f32}, {"bf16", bf16}, {"passed", passed}};
  std::printf("check of a shrunken model against the CPU: f32 %.2e, bf16 %.2e\n", f32, bf16);
  if (!passed) {
    std::printf("RED: the results are wrong, so no speed is given\n");
    if (!o.json.empty()) write_file(o.json, report.dump(1) + "\n");
    return 1;
  }
  Rng rng{1};
  Gemma2 model = random_model({}, DType::bf16, rng, Device::cuda);
  cuda_trim();
  const int64_t elements = count_elements(named_tensors(model));
  std::printf("%.3f G parameters, %.3f GB on the GPU\n", double(elements) * 1e-9,
              double(cuda_memory().now) * 1e-9);
  report["parameters"] = elements;
  report["gpu_bytes"] = cuda_memory().now;
  report["rows"] = rows(model, o, "first recommendation");
  {
    const GemmScope use(choices);
    for (const Json& row : rows(model, o, "timed choice")) report["rows"].push_back(row);
  }
  report["peak_bytes"] = cuda_memory().peak;
  if (!o.json.empty()) write_file(o.json, report.dump(1) + "\n");
  return 0;
}

}  // namespace

int run_bench_text(const BenchTextOptions& options) {
  check(cuda_available(), "bench-text: needs a GPU and a build with CUDA kernels for it");
  if constexpr (kHasCuda) {
    const std::string name = cuda::device_name();
    const int64_t version = cuda::cublaslt_version();
    const std::string& cache = options.gemm_cache;
    GemmChoices choices(cache.empty() ? GemmChoices::default_path(name, version) : cache, name, version);
    const int code = bench(options, choices);
    choices.save();
    return code;
  }
  return 2;
}

}  // namespace rivulet
