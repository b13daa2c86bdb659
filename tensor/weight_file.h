// Weights in any container that models are released in: safetensors, PyTorch's zip (.pth, .pt, .bin), and
// either of them split into shards with an index (*.index.json). Nothing is read before it is touched.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

using NamedShapes = std::map<std::string, Shape>;

struct WeightFile {
  std::string path;
  std::map<std::string, Tensor> tensors;  // views of mapped files; those of PyTorch need not be dense
  std::map<std::string, std::string> metadata;
  // PyTorch: the tensors stood in a "state_dict" (tensor/torch_file.h).
  bool has_state_dict = false;

  // Gives back the memory of a tensor that has been read, as far as it is a view of the file.
  void forget(const Tensor& t) const;
  std::set<std::shared_ptr<Storage>> mappings;  // of the files
};

// Which container it is, the file's first bytes tell. Throws an Error that names the path and what is wrong;
// an index and its shards must agree, and every disagreement is listed at once.
WeightFile open_weights(const std::string& path);

// What is wrong with `tensors` as the weights of a model that needs `wanted` (shapes by name): every missing
// tensor, every wrong shape, and every one that the model does not know. Those in `optional` may be missing.
// One line each, "\n  ..."; empty when nothing is.
std::string misfits(const std::map<std::string, Tensor>& tensors, const NamedShapes& wanted,
                    const NamedShapes& optional = {});

}  // namespace rivulet
