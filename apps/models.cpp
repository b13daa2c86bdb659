// rivulet models: the published models, where their files are expected, and whether a file is one of them.
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "apps/commands.h"
#include "models/released.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"

namespace rivulet {
namespace {

namespace fs = std::filesystem;

// The first tensor that holds something not finite; empty when none does. No more than a piece is in memory.
std::string first_not_finite(const WeightFile& file, const std::map<std::string, Tensor>& tensors) {
  constexpr int64_t kPiece = 4 << 20;
  for (const auto& [name, t] : tensors) {
    if (!is_floating(t.dtype())) continue;
    const Tensor flat = t.contiguous().reshape({-1});
    for (int64_t at = 0; at < flat.numel(); at += kPiece) {
      const Tensor part = flat.slice(0, at, std::min(flat.numel(), at + kPiece));
      const bool finite = std::isfinite(sum(abs(part.to(DType::f64))).item());
      file.forget(part);
      if (!finite) return name;
    }
  }
  return {};
}

// Checks names, shapes and values; prints what is wrong or that nothing is.
bool verify(const ReleasedModel& model, const std::string& path) {
  try {
    const WeightFile file = open_weights(path);
    const auto tensors = fitting_tensors(model, file);
    const std::string bad = first_not_finite(file, tensors);
    check(bad.empty(), path, ": ", bad, " holds values that are not finite");
    const auto random = file.metadata.find("weights");
    std::printf("%s: is %s, %zu tensors%s%s\n", path.c_str(), model.name.c_str(), tensors.size(),
                random == file.metadata.end() ? "" : "; weights: ",
                random == file.metadata.end() ? "" : random->second.c_str());
    return true;
  } catch (const Error& e) {
    std::printf("%s\n", e.what());
    return false;
  }
}

void list(const ReleasedModel& model, const std::string& folder) {
  std::printf("%s: %s\n", model.name.c_str(), model.what.c_str());
  std::printf("  %zu tensors, %.3f G parameters, %.3f GB in bf16\n", model.tensors.size(),
              double(model.elements()) * 1e-9, double(model.elements()) * 2e-9);
  std::printf("  published   %s, %s\n", model.repository.c_str(), model.file.c_str());
  std::printf("  licence     %s\n", model.licence.c_str());
  if (is_there(model, folder)) {
    const std::string path = find_released(model, folder);
    std::printf("  here        %s, %.3f GB\n", path.c_str(), double(fs::file_size(path)) * 1e-9);
    return;
  }
  std::printf("  absent; expected at one of\n");
  for (const std::string& place : model.places) std::printf("    %s\n", (fs::path(folder) / place).c_str());
}

}  // namespace

int run_models(const ModelsOptions& o) {
  check(o.from.empty() || o.names.size() == 1,
        "models: --from verifies one model's file, so name that model");
  const std::vector<std::string> names = o.names.empty() ? released_model_names() : o.names;
  bool good = true;
  for (const std::string& name : names) {
    const ReleasedModel model = released_model(name);
    if (!o.from.empty())
      good &= verify(model, o.from);
    else if (!o.verify)
      list(model, o.models);
    else if (!o.names.empty() || is_there(model, o.models))
      good &= verify(model, find_released(model, o.models));
  }
  return good ? 0 : 1;
}

}  // namespace rivulet
