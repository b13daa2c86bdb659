// The weights of causal attention, from products of queries and keys that are at hand as an array.
//
//   z = scale s,  z = cap tanh(z / cap) if there is a cap,
//   p[i, j] = exp(z[i, j]) / sum_j' exp(z[i, j'])   over the keys j that query i may see, 0 for the others
//   ds = scale (1 - (z / cap)^2) p (dp - sum_j dp p).        Saves p, and with a cap s.
//
// Query i sees key j when 0 <= i - j < window and the mask has 1 for j.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

struct CausalSoftmax {
  double scale = 1;
  double cap = 0;      // 0: none
  int64_t window = 0;  // keys that a query sees, itself counted; 0: all before it
};

// s [B, H, N, N] (queries, keys), key_mask [B, N] u8 or undefined. A query that sees nothing gives zeros and
// passes no gradient.
Tensor causal_softmax(const Tensor& s, const CausalSoftmax& options, const Tensor& key_mask = {});

// Dense, f32 or f64.
KERNELS(void causal_softmax(const Tensor& s, const CausalSoftmax& options, const Tensor& key_mask, Tensor& p);
        void causal_softmax_backward(const Tensor& dp, const Tensor& s, const Tensor& p,
                                     const CausalSoftmax& options, Tensor& ds);)

const OpCase& causal_softmax_case();
const OpCase& causal_softmax_capped_case();

}  // namespace rivulet
