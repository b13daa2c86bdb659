// Reductions. Long sums go through f64 in short f32 blocks, in an order that depends on the shape alone.
//
//   sum, mean    dx = dy spread back over the summed dims (a view, no copy)
//   max          dx = dy shared equally among the places that hold the maximum        saves x and y
//   softmax      y_i = e^(x_i - m) / sum_j e^(x_j - m) over the last dim, m = max_j x_j
//                dx = y * (dy - sum_j dy_j y_j)                                        saves y
//   logsumexp    y = m + log sum_j e^(x_j - m) over the last dim;  dx = dy * e^(x - y)  saves x and y
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

// Over every dim, to shape [].
Tensor sum(const Tensor& x);
Tensor mean(const Tensor& x);
Tensor max(const Tensor& x);
// Over the named dims (negative ones count from the end); keepdim leaves them as 1.
Tensor sum(const Tensor& x, const std::vector<int>& dims, bool keepdim = false);
Tensor mean(const Tensor& x, const std::vector<int>& dims, bool keepdim = false);
Tensor max(const Tensor& x, const std::vector<int>& dims, bool keepdim = false);

Tensor softmax(const Tensor& x);
// [..., C] -> [...], or [..., 1] with keepdim
Tensor logsumexp(const Tensor& x, bool keepdim = false);

// Dense tensors seen as rows of the last dim. row_max: [rows, C] -> [rows].
// max_backward: y and g are [rows].
KERNELS(void row_max(const Tensor& x, Tensor& y);
        void max_backward(const Tensor& g, const Tensor& x, const Tensor& y, Tensor& dx);
        void softmax(const Tensor& x, Tensor& y);
        void softmax_backward(const Tensor& g, const Tensor& y, Tensor& dx);
        void logsumexp(const Tensor& x, Tensor& y);
        void logsumexp_backward(const Tensor& g, const Tensor& x, const Tensor& y, Tensor& dx);)

const OpCase& sum_case();
const OpCase& mean_case();
const OpCase& max_case();
const OpCase& softmax_case();
const OpCase& logsumexp_case();

}  // namespace rivulet
