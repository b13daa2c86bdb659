// How ops that condition rows of channels by vectors see their inputs: [groups, rows, C] and [groups, C].
#pragma once

#include <algorithm>

#include "tensor/autograd.h"

namespace rivulet {

// How rows of x share vectors of one shape: leading dims that differ from vector to vector make groups, the
// others are the rows of a group.
struct Grouping {
  Shape full;     // x's shape
  Shape vectors;  // x's leading dims down to the last that has several vectors, then ones, then C
  int64_t groups, rows, channels;

  Tensor tokens(const Tensor& x) const { return x.contiguous().reshape({groups, rows, channels}); }
  Tensor per_group(const Tensor& v) const {
    return v.expand(vectors).contiguous().reshape({groups, channels});
  }
  Tensor empty(const Tensor& like) const { return Tensor({groups, channels}, like.dtype(), like.device()); }
  // The gradient of a vector tensor that has `shape`.
  Tensor gradient(const Tensor& d, const Shape& shape) const {
    return d ? sum_to(d.reshape(vectors), shape).reshape(shape) : Tensor();
  }
};

inline Grouping grouping(const char* who, const Tensor& x, const Tensors& vectors) {
  check(x.dims() >= 1 && x.dim(-1) > 0, who, ": x has shape ", x.shape());
  Grouping g{x.shape(), x.shape(), 1, 1, x.dim(-1)};
  int last = -1;
  for (const Tensor& v : vectors) {
    check(v.dims() >= 1 && v.dim(-1) == x.dim(-1) && broadcast_shapes(x.shape(), v.shape(), who) == x.shape(),
          who, ": vectors of shape ", v.shape(), " for x of shape ", x.shape());
    for (int i = 0; i < v.dims() - 1; ++i)
      if (v.shape()[i] != 1) last = std::max(last, i + x.dims() - v.dims());
  }
  for (int i = 0; i < x.dims() - 1; ++i) {
    (i <= last ? g.groups : g.rows) *= x.shape()[i];
    if (i > last) g.vectors[i] = 1;
  }
  return g;
}

}  // namespace rivulet
