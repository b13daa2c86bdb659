#include "quant/matrix.h"

#include <cmath>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace {

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

bool cholesky(Matrix& a) {
  for (int64_t j = 0; j < a.n; ++j) {
    const double pivot = a(j, j) - dot(a.row(j), a.row(j), j);
    if (!(pivot > 0)) return false;
    const double root = std::sqrt(pivot);
    a(j, j) = root;
    parallel_for(a.n - j - 1, 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = j + 1 + begin; i < j + 1 + end; ++i)
        a(i, j) = (a(i, j) - dot(a.row(i), a.row(j), j)) / root;
    });
  }
  return true;
}

Matrix inverse_spd(Matrix a) {
  check(cholesky(a), "inverse: the matrix of ", a.n, " rows is not positive definite");
  // Row i of w is column i of L^-1, so that every sum below runs along rows.
  Matrix w(a.n), out(a.n);
  for (int64_t i = 0; i < a.n; ++i) {
    w(i, i) = 1 / a(i, i);
    for (int64_t j = i + 1; j < a.n; ++j) w(i, j) = -dot(a.row(j) + i, w.row(i) + i, j - i) / a(j, j);
  }
  parallel_for(a.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j <= i; ++j) out(i, j) = dot(w.row(i) + i, w.row(j) + i, a.n - i);
  });
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t j = i + 1; j < a.n; ++j) out(i, j) = out(j, i);
  return out;
}

}  // namespace rivulet
