#include "apps/bundled.h"

#include <filesystem>
#include <vector>

#include "tensor/error.h"

namespace fs = std::filesystem;

namespace rivulet {

namespace {

// The first of `places` in a folder above the program that holds `file`; empty when none does.
fs::path find_above(const std::vector<const char*>& places, const fs::path& file) {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  for (fs::path dir = program.parent_path(); !dir.empty(); dir = dir.parent_path()) {
    for (const char* place : places)
      if (const fs::path found = dir / place / file; fs::exists(found)) return found;
    if (dir == dir.root_path()) break;
  }
  return {};
}

}  // namespace

std::string bundled_model(const std::string& name) {
  const fs::path weights =
      find_above({"models", "share/rivulet/models"}, fs::path(name) / "weights.safetensors");
  check(!weights.empty(), "the bundled model '", name,
        "' is not installed beside the program; name a model folder with --model");
  return weights.parent_path().string();
}

std::string bundled_cost(const std::string& name) {
  const fs::path file = find_above({"quant/costs", "share/rivulet/costs"}, name + ".json");
  check(!file.empty(), "there is no bundled cost file '", name, "'; name a file with --cost");
  return file.string();
}

}  // namespace rivulet
