#include "tensor/shape.h"

#include <algorithm>

namespace rivulet {

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.size() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

Shape broadcast_shapes(const Shape& a, const Shape& b, const char* who) {
  Shape out = a.size() >= b.size() ? a : b;
  for (int i = 1; i <= out.size(); ++i) {
    const int64_t x = i <= a.size() ? a[a.size() - i] : 1;
    const int64_t y = i <= b.size() ? b[b.size() - i] : 1;
    check(x == y || x == 1 || y == 1, who, ": shapes ", a, " and ", b, " do not broadcast");
    out[out.size() - i] = x == 1 ? y : x;
  }
  return out;
}

int wrap_dim(int dim, int dims, const char* who) {
  check(dim >= -dims && dim < dims, who, ": dim ", dim, " of a tensor with ", dims, " dims");
  return dim < 0 ? dim + dims : dim;
}

}  // namespace rivulet
