// A square matrix in f64 and what the search needs of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rivulet {

struct Matrix {
  int64_t n = 0;
  std::vector<double> v;  // row-major

  Matrix() = default;
  explicit Matrix(int64_t n) : n(n), v(size_t(n * n)) {}
  double& operator()(int64_t i, int64_t j) { return v[size_t(i * n + j)]; }
  double operator()(int64_t i, int64_t j) const { return v[size_t(i * n + j)]; }
  const double* row(int64_t i) const { return v.data() + i * n; }
};

// The lower triangle L of a = L L' takes the place of a's. False where a is not positive definite; what
// stands in a is then of no use. Only the lower triangle of a is read.
bool cholesky(Matrix& a);

// The inverse of a symmetric positive definite matrix; throws on another.
Matrix inverse_spd(Matrix a);

}  // namespace rivulet
