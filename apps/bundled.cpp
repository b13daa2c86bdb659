#include "apps/bundled.h"

#include <filesystem>

#include "tensor/error.h"

namespace fs = std::filesystem;

namespace rivulet {

std::string bundled_model(const std::string& name) {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  for (fs::path dir = program.parent_path(); !dir.empty(); dir = dir.parent_path()) {
    for (const char* place : {"models", "share/rivulet/models"})
      if (const fs::path found = dir / place / name; fs::exists(found / "weights.safetensors"))
        return found.string();
    if (dir == dir.root_path()) break;
  }
  fail("the bundled model '", name,
       "' is not installed beside the program; name a model folder with --model");
}

}  // namespace rivulet
