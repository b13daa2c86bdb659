// The safetensors container: 8-byte little-endian header length, JSON header, raw row-major data.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "tensor/tensor.h"

namespace rivulet {

// A mapped file. Tensors returned by get() share the mapping (copy on write) and keep it alive.
// Opening checks everything a hostile file could lie about: header length against the file size, JSON,
// dtype names, shapes against byte counts, offsets in range, without gaps or overlaps.
class SafeTensors {
 public:
  explicit SafeTensors(const std::string& path);
  const std::string& path() const { return path_; }
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  Tensor get(const std::string& name) const;  // throws with the name and the path when absent
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::shared_ptr<Storage>& mapping() const { return mapping_; }

 private:
  std::string path_;
  std::shared_ptr<Storage> mapping_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Writes to a temporary name beside `path`, syncs, then renames: the old file stays whole on any failure.
void save_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

// A tensor that is made while it is written, so that a file may be larger than memory.
struct PlannedTensor {
  std::string name;
  DType dtype;
  Shape shape;
  // Elements [begin, end) in row-major order as a dense CPU tensor of the dtype. Asked for once each, in
  // order.
  std::function<Tensor(int64_t begin, int64_t end)> part;
};
// As save_safetensors, in pieces of at most 16 MiB. Order is that of the list.
void save_planned(const std::string& path, const std::vector<PlannedTensor>& tensors,
                  const std::map<std::string, std::string>& metadata = {});

// The same write-beside-and-rename for any bytes (JSON files, images).
void write_file(const std::string& path, const std::string& bytes);
std::string read_file(const std::string& path);

}  // namespace rivulet
