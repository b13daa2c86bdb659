// Which of cuBLASLt's algorithms serves each matrix product, found by timing and kept in a file.
//
// Without a GemmChoices in scope a product takes the library's first recommendation. Inside of one it takes
// the recorded algorithm; a product that has none is timed first when `time_new` is set, otherwise it takes
// the first recommendation. Algorithms differ in the order of their sums, so another timing may change last
// bits: the same file gives the same bits. Timing needs the GPU to itself and cannot happen while a graph is
// being captured.
//
//   GemmChoices choices(GemmChoices::default_path(gpu, version), gpu, version);
//   { GemmScope use(choices, /*time_new=*/true); step(); }
//   choices.save();
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace rivulet {

struct GemmChoice {
  std::array<uint64_t, 8> algorithm{};     // cublasLtMatmulAlgo_t, valid for one version of the library
  double best_us = 0, first_us = 0;        // measured, of this one and of the first recommendation
  std::array<int64_t, 4> configuration{};  // tile, stages, split of k, cluster: the library's own numbers
};

class GemmChoices {
 public:
  // Everything that tells one kind of product from another (ops/gemm.cu fills it in).
  using Key = std::array<int64_t, 22>;

  // Reads `path` when it is there. A file that is damaged or of another GPU or library version counts as
  // absent, and ignored() says why. An empty path keeps the choices in memory alone.
  GemmChoices(std::string path, std::string gpu, int64_t library_version);
  // $XDG_CACHE_HOME (or ~/.cache)/rivulet/gemm-<gpu>-<library version>.json; empty without a home.
  static std::string default_path(const std::string& gpu, int64_t library_version);

  const std::string& path() const { return path_; }
  const std::string& ignored() const { return ignored_; }
  const GemmChoice* find(const Key& key) const;
  void put(const Key& key, const GemmChoice& choice);
  const std::map<Key, GemmChoice>& all() const { return choices_; }
  // Writes beside the file and renames; nothing to do when nothing was added. Makes the folder.
  void save();

 private:
  std::string path_, gpu_, ignored_;
  int64_t version_;
  bool changed_ = false;
  std::map<Key, GemmChoice> choices_;
};

// Products of this thread use `choices` while in scope.
class GemmScope {
 public:
  explicit GemmScope(GemmChoices& choices, bool time_new = true);
  ~GemmScope();
  GemmScope(const GemmScope&) = delete;
  GemmScope& operator=(const GemmScope&) = delete;

  struct Current {
    GemmChoices* choices = nullptr;
    bool time_new = false;
  };
  static Current current();

 private:
  Current previous_;
};

namespace cuda {
int64_t cublaslt_version();
}

}  // namespace rivulet
