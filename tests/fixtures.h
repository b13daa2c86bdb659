// What several tests stand on: a folder that goes away, and an editor small enough to train in seconds.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "models/edit_model.h"

namespace rivulet {

struct TempDir {
  std::string path;
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "rivulet_XXXXXX").string();
    check(mkdtemp(name.data()) != nullptr, "no temporary folder");
    path = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string operator/(const std::string& name) const { return path + "/" + name; }
};

// Two blocks, one of each kind, over 4x4 patches; the vocabulary is the caller's.
inline EditModelConfig tiny_editor_config() {
  EditModelConfig c;
  c.name = "tiny";
  c.dit.depth = 2;
  c.dit.width = 32;
  c.dit.heads = 2;
  c.dit.softmax_blocks = {1};
  c.dit.latent_channels = 48;
  c.dit.caption_channels = 16;
  c.prediction = "colour_residual";
  c.patch = 4;
  return c;
}

}  // namespace rivulet
