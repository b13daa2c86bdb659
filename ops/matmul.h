// Matrix products.
//
//   matmul   Y = A B             dA = dY B^T,  dB = A^T dY, summed over the dims that broadcast
//   linear   Y = X W^T + b       dX = dY W,    dW = dY^T X,  db = column sums of dY
//   linear_add    Y = E + X W^T + b, one product on the GPU   dE = dY, the rest as linear
//   linear_silu   silu(linear(X, W, b)), in one sweep where no gradient is needed; otherwise the two ops
//
// All save their operands. Transposed and row-strided views are read in place. f32 sums run in f32, in
// an order that depends on K alone (ops/gemm.h).
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

// a [..., M, K] times b [..., K, N] -> [..., M, N]; the leading dims broadcast.
Tensor matmul(const Tensor& a, const Tensor& b);
// x [..., K], w [N, K], bias [N] or undefined -> [..., N]
Tensor linear(const Tensor& x, const Tensor& w, const Tensor& bias = {});
Tensor linear_silu(const Tensor& x, const Tensor& w, const Tensor& bias = {});
// addend [..., N]
Tensor linear_add(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& addend);

// matmul: y is dense [batch..., M, N]; a and b any strides, their batch dims broadcast to y's.
// linear: x [rows, K], w [N, K], addend and y [rows, N] dense; any strides for x and w.
KERNELS(void matmul(const Tensor& a, const Tensor& b, Tensor& y);
        void linear(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y);
        void linear_add(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& addend,
                        Tensor& y);)
namespace cpu {
void linear_silu(const Tensor& x, const Tensor& w, const Tensor& bias, Tensor& y);
}

const OpCase& matmul_case();
const OpCase& linear_case();
const OpCase& linear_silu_case();
const OpCase& linear_add_case();

}  // namespace rivulet
