// How errors of single layers add up (the mixed-precision specification, 4.3a).
//
// d_i is what the network's result changes by when only option i is in force. To first order the changes add,
// so for a policy z the squared error is z' G z with G_ij = <d_i, d_j> / (N var(reference)): every pairwise
// interaction from one run per option. G is positive semi-definite by construction.
#pragma once

#include "quant/matrix.h"
#include "tensor/tensor.h"

namespace rivulet {

// All products of the rows of `errors` (f32 or f16 [n, N]) over `scale`. Products are f32, summed in f64 over
// runs of a fixed length, so the result is the same on every machine with the same matrix product.
Matrix gram_matrix(const Tensor& errors, double scale);

// N var(reference): the sum of squared distances to the mean. Throws where the reference is constant.
double energy(const Tensor& reference);

// A shorter vector with nearly the same products: values are added to one of `size` places with a random
// sign, both drawn from the index alone (Charikar et al. 2002), then the whole is scaled to keep its length.
// A product of two vectors is off by about sqrt(1 / size) of their lengths. `values` itself (as f32 [N]) when
// it is not longer than `size`.
Tensor sketch(const Tensor& values, int64_t size);

// How well predictions meet what was measured.
struct Agreement {
  int64_t count = 0;
  double slope = 0, intercept = 0;  // least squares: measured = intercept + slope * predicted
  double slope_through_zero = 0;    // of measured = slope * predicted
  double r2 = 0;                    // of that line with intercept: the squared correlation
  double r2_as_is = 0;              // 1 - sum (measured - predicted)^2 / sum (measured - mean)^2
  double rank = 0;                  // Spearman's rank correlation; ties share their mean rank
};
// Needs two values, not all alike, in both.
Agreement agreement(const std::vector<double>& predicted, const std::vector<double>& measured);

}  // namespace rivulet
