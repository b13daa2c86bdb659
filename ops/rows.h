// Small things that ops on rows (the last dim) share.
#pragma once

#include <algorithm>
#include <memory>

#include "tensor/parallel.h"
#include "tensor/tensor.h"

namespace rivulet {

// x itself when its last dim is dense, so that kernels may read rows by pointer; otherwise a dense copy.
inline Tensor dense_rows(const Tensor& x) {
  return x.dim(-1) == 1 || x.strides()[x.dims() - 1] == 1 ? x : x.contiguous();
}

// Rows at a fixed distance, read by pointer.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t i) const { return data + i * stride; }
};

// Uninitialised work space of one piece of a parallel loop.
template <class T>
std::unique_ptr<T[]> scratch(int64_t n) {
  return std::make_unique_for_overwrite<T[]>(n);
}

// f(row) over the rows of x, shared out.
template <class F>
void for_rows(const Tensor& x, F&& f) {
  const int64_t c = x.dim(-1);
  if (c == 0) return;
  parallel_for(x.numel() / c, std::max<int64_t>(1, 16384 / c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row);
  });
}

// out[groups, width] = sums over the rows of each group, `rows` to a group. f(begin, end, group, partial)
// adds rows [begin, end), numbered through all groups, to partial[width], which starts at zero. Partial sums
// hold a fixed number of rows and are added up in order, in f64.
template <class T, class F>
void sum_over_rows(int64_t groups, int64_t rows, int64_t width, T* out, F&& f) {
  constexpr int64_t kRows = 64;
  const int64_t pieces = (rows + kRows - 1) / kRows;
  const std::unique_ptr<T[]> partial = scratch<T>(groups * pieces * width);
  parallel_for(groups * pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t group = task / pieces, begin = task % pieces * kRows;
      T* sums = partial.get() + task * width;
      std::fill(sums, sums + width, T(0));
      f(group * rows + begin, group * rows + std::min(rows, begin + kRows), group, sums);
    }
  });
  parallel_for(groups * width, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* sums = partial.get() + i / width * pieces * width + i % width;
      double total = 0;
      for (int64_t p = 0; p < pieces; ++p) total += double(sums[p * width]);
      out[i] = T(total);
    }
  });
}

}  // namespace rivulet
