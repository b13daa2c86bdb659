// A small matrix product at every place: each of N places mixes its own K operands into C results.
//
//   y[b, f, c, n] = sum_k a[b, f, k, n] w[b, k, c, n]
//   da[b, f, k, n] = sum_c dy[b, f, c, n] w[b, k, c, n],   dw[b, k, c, n] = sum_f a[b, f, k, n] dy[b, f, c,
//   n]
//
// Places are neighbours in memory, so it runs along them. Saves a and w.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// a [B, F, K, N], w [B, K, C, N] -> [B, F, C, N]. Sums run over k (in the gradients over c and f) in order.
Tensor mix(const Tensor& a, const Tensor& w);

// All dense and of one type. da is undefined where it is not wanted.
KERNELS(void mix(const Tensor& a, const Tensor& w, Tensor& y);
        void mix_backward(const Tensor& dy, const Tensor& a, const Tensor& w, Tensor& da, Tensor& dw);)

const OpCase& mix_case();

}  // namespace rivulet
