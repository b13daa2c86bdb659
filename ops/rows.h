// Small things that ops on strided inputs share.
#pragma once

#include <memory>

#include "tensor/tensor.h"

namespace rivulet {

// x itself when its last dim is dense, so that kernels may read rows by pointer; otherwise a dense copy.
inline Tensor dense_rows(const Tensor& x) {
  return x.dim(-1) == 1 || x.strides()[x.dims() - 1] == 1 ? x : x.contiguous();
}

// Uninitialised work space of one piece of a parallel loop.
template <class T>
std::unique_ptr<T[]> scratch(int64_t n) {
  return std::make_unique_for_overwrite<T[]>(n);
}

}  // namespace rivulet
