// Weights written by torch.save: a zip of one pickle, which says what there is, and of raw bytes. The pickle
// is read as data (tensor/pickle.h); the bytes stay in the file until they are touched.
#pragma once

#include <map>
#include <string>

#include "tensor/tensor.h"

namespace rivulet {

// Opening checks everything a hostile file could lie about: only globals that stand for tensors are accepted
// (any other is refused by its name), no member is compressed, members lie in the file without overlaps, and
// every tensor lies in its storage.
class TorchFile {
 public:
  explicit TorchFile(const std::string& path);
  const std::string& path() const { return path_; }
  // Tensors by name; the keys of nested dicts are joined with dots. Values that are not tensors are left out.
  // Tensors may share data and need not be dense. Weights are often kept inside of "generator" and/or
  // "state_dict" beside other things; then these are the tensors in there alone.
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  bool has_state_dict() const { return has_state_dict_; }
  const std::shared_ptr<Storage>& mapping() const { return mapping_; }

  // What the file begins with.
  static bool is_zip(std::string_view bytes);
  static bool is_legacy(std::string_view bytes);  // torch.save before 1.6, or asked to write so

 private:
  std::string path_;
  std::shared_ptr<Storage> mapping_;
  bool has_state_dict_ = false;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace rivulet
