#include "ops/gemm.h"

// Threads are ours: tiles of C, so that the split does not depend on how many there are.
#define EIGEN_DONT_PARALLELIZE
// GCC 12 takes the undefined lanes of its own AVX-512 intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <Eigen/Core>

#include "tensor/parallel.h"

namespace rivulet::cpu {
namespace {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using ConstMap = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;
template <class T>
using MutableMap = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;

// One tile of C, rows x cols, on this thread.
template <class T>
void gemm_tile(bool trans_a, bool trans_b, int64_t rows, int64_t cols, int64_t k, T alpha, const T* a,
               int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  MutableMap<T> out(c, rows, cols, Eigen::OuterStride<>(ldc));
  if (beta == T(0)) {
    out.setZero();
  } else if (beta != T(1)) {
    out *= beta;
  }
  const ConstMap<T> ma(a, trans_a ? k : rows, trans_a ? rows : k, Eigen::OuterStride<>(lda));
  const ConstMap<T> mb(b, trans_b ? cols : k, trans_b ? k : cols, Eigen::OuterStride<>(ldb));
  if (trans_a && trans_b) {
    out.noalias() += alpha * (ma.transpose() * mb.transpose());
  } else if (trans_a) {
    out.noalias() += alpha * (ma.transpose() * mb);
  } else if (trans_b) {
    out.noalias() += alpha * (ma * mb.transpose());
  } else {
    out.noalias() += alpha * (ma * mb);
  }
}

}  // namespace

template <class T>
void gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, T beta, T* c, int64_t ldc, bool parallel) {
  if (m == 0 || n == 0) return;
  // Tiles large enough that packing is paid back, small enough that a few threads all get some.
  constexpr int64_t kRows = 256, kCols = 512;
  const int64_t row_tiles = (m + kRows - 1) / kRows, col_tiles = (n + kCols - 1) / kCols;
  const auto run_tile = [&](int64_t tile) {
    const int64_t i = tile / col_tiles * kRows, j = tile % col_tiles * kCols;
    gemm_tile(trans_a, trans_b, std::min(kRows, m - i), std::min(kCols, n - j), k, alpha,
              a + (trans_a ? i : i * lda), lda, b + (trans_b ? j * ldb : j), ldb, beta, c + i * ldc + j, ldc);
  };
  const int64_t tiles = row_tiles * col_tiles;
  parallel_for(tiles, parallel ? 1 : tiles, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) run_tile(tile);
  });
}

template void gemm<float>(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*,
                          int64_t, float, float*, int64_t, bool);
template void gemm<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                           const double*, int64_t, double, double*, int64_t, bool);

}  // namespace rivulet::cpu
