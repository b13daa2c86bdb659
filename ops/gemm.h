// The general matrix product that every CPU op with a GEMM inside stands on (matmul, linear, attention,
// gdn, conv):
//
//   C[m, n] = alpha * op(A)[m, k] * op(B)[k, n] + beta * C,     op(X) = X or X^T
//
// Row-major: lda, ldb and ldc are the distances in elements between stored rows. op(A)[i][p] is
// a[i * lda + p], or a[p * lda + i] when trans_a; the same for B. With beta == 0, C is only written, so it
// may hold anything before. C must not overlap A or B.
//
// Results are the same bit for bit for any number of threads, with or without `parallel`. Pass
// `parallel = false` inside a parallel_for piece: the call then stays on its thread.
#pragma once

#include <cstdint>

namespace rivulet::cpu {

template <class T>
void gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, T beta, T* c, int64_t ldc, bool parallel = true);

enum class Activation : uint8_t { none, silu };

// C = f(alpha * op(A) * op(B) + 1 * bias), with bias[n] added to every row; null means none.
template <class T>
void gemm_bias(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
               const T* b, int64_t ldb, const T* bias, T* c, int64_t ldc, Activation f = Activation::none,
               bool parallel = true);

extern template void gemm<float>(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t,
                                 const float*, int64_t, float, float*, int64_t, bool);
extern template void gemm<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                                  const double*, int64_t, double, double*, int64_t, bool);
extern template void gemm_bias<float>(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t,
                                      const float*, int64_t, const float*, float*, int64_t, Activation, bool);
extern template void gemm_bias<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                                       const double*, int64_t, const double*, double*, int64_t, Activation,
                                       bool);

}  // namespace rivulet::cpu
