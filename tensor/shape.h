// Shapes of up to 8 dims, row-major strides in elements, and broadcasting.
//
// Shape letters, fixed for the whole code base:
//   B batch   T latent frames   H W latent grid   S = H*W tokens of a frame   N = T*S tokens
//   C channels   nH heads   D head dim   L text tokens
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

#include "tensor/error.h"

namespace rivulet {

constexpr int kMaxDims = 8;

// A short inline list of int64: shapes, strides and dim orders.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> v) : Shape(std::span<const int64_t>(v.begin(), v.size())) {}
  explicit Shape(std::span<const int64_t> v) {
    check(v.size() <= kMaxDims, "shape: ", v.size(), " dims, at most ", kMaxDims, " are supported");
    for (int64_t x : v) data_[size_++] = x;
  }
  int size() const { return size_; }
  int64_t& operator[](int i) { return data_[i]; }
  int64_t operator[](int i) const { return data_[i]; }
  const int64_t* begin() const { return data_.data(); }
  const int64_t* end() const { return data_.data() + size_; }
  void push_back(int64_t x) {
    check(size_ < kMaxDims, "shape: more than ", kMaxDims, " dims");
    data_[size_++] = x;
  }
  bool operator==(const Shape& o) const { return size_ == o.size_ && std::equal(begin(), end(), o.begin()); }
  // Number of elements; 1 for a scalar.
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t x : *this) n *= x;
    return n;
  }

 private:
  std::array<int64_t, kMaxDims> data_{};
  int size_ = 0;
};

inline std::ostream& operator<<(std::ostream& os, const Shape& s) {
  os << '[';
  for (int i = 0; i < s.size(); ++i) os << (i ? ", " : "") << s[i];
  return os << ']';
}

// Row-major strides of a dense tensor.
Shape contiguous_strides(const Shape& shape);
// The shape both broadcast to (NumPy's rule); throws with both shapes otherwise.
Shape broadcast_shapes(const Shape& a, const Shape& b, const char* who);
// dim in [-dims, dims) to [0, dims).
int wrap_dim(int dim, int dims, const char* who);

}  // namespace rivulet
