// The matrix product that CUDA ops stand on, by cuBLASLt. Row-major:
//
//   C[m, n] = alpha * op(A)[m, k] * op(B)[k, n] + beta * E[m, n] + bias[n],      E is C unless given
//
// A and B have one dtype (f32, f64, bf16, or a scaled format below), sums are f32 (f64 for f64). The same
// call gives the same bits in every run; ops/gemm_choices.h says how its algorithm is chosen.
#pragma once

#include "tensor/tensor.h"

namespace rivulet::cuda {

// How f32 inputs are multiplied: exactly, or rounded to TF32 (10 bits of mantissa) on the tensor cores.
enum class Precision { full, tf32 };

// How the numbers of A and B are scaled, both in the same way. tensor: in f8_e4m3, one f32 each; rows: in
// f8_e4m3, f32 [m] and [n] (Hopper); groups32: in f8_e4m3, UE8M0 for 32 values along k; groups16: in
// f4_e2m1x2, E4M3 for 16 (both Blackwell; scales in swizzled order, ops/quantize.h). All but none need op(A)
// = A and op(B) = B^T, rows at multiples of 16 bytes, and give bf16 or f32.
enum class Scaling : uint8_t { none, tensor, rows, groups32, groups16 };

struct Gemm {
  bool trans_a = false, trans_b = false;  // op(A)[i][p] is a[i * lda + p], or a[p * lda + i] when trans_a
  int64_t m = 0, n = 0, k = 0;
  const void *a = nullptr, *b = nullptr;
  void* c = nullptr;
  int64_t lda = 0, ldb = 0, ldc = 0;
  // Products of a batch: distances in elements between their operands (0 repeats A or B).
  int64_t batch = 1, step_a = 0, step_b = 0, step_c = 0;
  DType in = DType::f32, out = DType::f32;  // f32 output of bf16 inputs is possible
  double alpha = 1, beta = 0;
  const void* addend = nullptr;  // E, of dtype `out`, laid out as C
  const void* bias = nullptr;    // of dtype `out`; added to every row
  Precision precision = Precision::full;
  Scaling scaling = Scaling::none;
  const void *scale_a = nullptr, *scale_b = nullptr;
  // E4M3 products on Hopper: true keeps a sum in the tensor core's 14 bits, false adds each 128 of k up in
  // f32.
  bool fast_sums = false;
  const float* alpha_on_device = nullptr;  // instead of alpha, for groups16
};

void gemm(const Gemm& g);
// False where the library has no kernel for it on this GPU: nothing was done.
bool try_gemm(const Gemm& g);

}  // namespace rivulet::cuda
