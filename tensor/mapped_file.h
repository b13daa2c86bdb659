// A file in memory without being read: its pages come in as they are touched.
#pragma once

#include <string>
#include <string_view>

#include "tensor/tensor.h"

namespace rivulet {

// The whole file, private to this process (what is written stays here); unmapped when the last tensor lets
// go. Throws on anything but a regular file of at least one byte, naming the path.
std::shared_ptr<Storage> map_file(const std::string& path);
inline std::string_view bytes_of(const Storage& file) {
  return {static_cast<const char*>(file.data()), size_t(file.bytes())};
}

// Gives back the memory of part of a mapping; the file is read again when it is touched. Whole pages alone,
// so neighbours lose nothing. What was written there is lost.
void forget_pages(const void* begin, int64_t bytes);

// Elements as a file holds them. The integers that tensors have no type for are widened when read; a boolean
// is a byte.
struct FileType {
  DType dtype;            // of the tensor
  int64_t bytes;          // of one element in the file
  bool is_signed = true;  // of an integer to be widened
};
// Elements of a mapped file, the first at byte `at`; strides in elements. A view of the mapping where type
// and alignment allow it, otherwise a copy. The caller has checked that every element lies in the file.
Tensor file_tensor(const std::shared_ptr<Storage>& file, int64_t at, const Shape& shape, const Shape& strides,
                   const FileType& type);

}  // namespace rivulet
