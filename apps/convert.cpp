// rivulet convert: published weights into one safetensors file, or random ones of a published model's shapes.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <filesystem>

#include "apps/commands.h"
#include "models/released.h"
#include "ops/elementwise.h"

namespace rivulet {
namespace {

namespace fs = std::filesystem;

DType dtype_named(const std::string& name) {
  for (const DType t : {DType::f32, DType::bf16, DType::f16})
    if (name == name_of(t)) return t;
  fail("convert: --dtype ", name, " is not f32, bf16 or f16");
}

// A tensor of a mapped file, read piece by piece; no more than a piece stays in memory, unless its elements
// do not lie in order: such a tensor is made dense as a whole first.
PlannedTensor from_file(const WeightFile& file, const std::string& name, const Tensor& t, DType dtype) {
  auto dense = std::make_shared<Tensor>();
  return {name, dtype, t.shape(), [&file, t, dtype, dense](int64_t begin, int64_t end) {
            if (!*dense) *dense = t.contiguous().reshape({-1});
            const Tensor part = dense->slice(0, begin, end);
            // A copy in any case, since the pages are given back.
            const Tensor out = part.dtype() == dtype ? part.clone() : part.to(dtype);
            file.forget(part);
            if (end == t.numel()) *dense = {};
            return out;
          }};
}

std::vector<PlannedTensor> plan_file(const WeightFile& file, const std::map<std::string, Tensor>& tensors,
                                     const std::string& dtype) {
  std::vector<PlannedTensor> out;
  for (const auto& [name, t] : tensors) {
    const bool converts = !dtype.empty() && is_floating(t.dtype());
    out.push_back(from_file(file, name, t, converts ? dtype_named(dtype) : t.dtype()));
  }
  return out;
}

std::vector<PlannedTensor> plan_random(const ReleasedModel& model, DType dtype, Rng& rng, Device device) {
  std::vector<PlannedTensor> out;
  for (const auto& [name, shape] : model.tensors) {
    const RandomWeight r = model.random(name, shape);
    out.push_back({name, dtype, shape, [r, dtype, device, &rng](int64_t begin, int64_t end) {
                     const Tensor values = randn({end - begin}, rng, DType::f32, device);
                     return (values * r.spread + r.mean).to(dtype).to(Device::cpu);
                   }});
  }
  return out;
}

}  // namespace

int run_convert(const ConvertOptions& o) {
  check(o.in.empty() != o.random.empty(), "convert: wants a file of weights, or --random MODEL");
  check(fs::path(o.out).extension() == ".safetensors", "convert: ", o.out, " is not a .safetensors");
  std::error_code error;
  check(o.in.empty() || !fs::equivalent(o.in, o.out, error), "convert: ", o.out, " is the input itself");
  if (const fs::path folder = fs::path(o.out).parent_path(); !folder.empty())
    fs::create_directories(folder, error);
  const auto start = std::chrono::steady_clock::now();
  std::vector<PlannedTensor> plan;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  Rng rng{o.seed};
  WeightFile file;
  if (!o.random.empty()) {
    const ReleasedModel model = released_model(o.random);
    metadata["model"] = model.name;
    metadata["weights"] = "random, seed " + std::to_string(o.seed);
    plan = plan_random(model, dtype_named(o.dtype.empty() ? "bf16" : o.dtype), rng, device_named(o.device));
  } else {
    file = open_weights(o.in);
    metadata.insert(file.metadata.begin(), file.metadata.end());
    if (!o.as.empty()) {
      const ReleasedModel model = released_model(o.as);
      metadata["model"] = model.name;
      plan = plan_file(file, fitting_tensors(model, file), o.dtype);
    } else {
      plan = plan_file(file, file.tensors, o.dtype);
    }
    check(!plan.empty(), o.in, ": holds no tensors");
  }
  save_planned(o.out, plan, metadata);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  std::printf("%s: %zu tensors, %.3f GB, in %.1f s and %.0f MB of memory\n", o.out.c_str(), plan.size(),
              double(fs::file_size(o.out)) * 1e-9, seconds.count(), double(usage.ru_maxrss) / 1024);
  return 0;
}

}  // namespace rivulet
