// Row arithmetic that the norms and the fused norm + modulation share (CUDA). Rows of x, y, g and dx are
// dense; rows_per_group of them share a row of w and b. An undefined w counts as ones (and `offset` is not
// added), an undefined b as zeros.
#pragma once

#include "tensor/tensor.h"

namespace rivulet::cuda {

struct RowNorm {
  bool centred;   // layer norm: h = (x - mean) r; otherwise RMS norm: h = x r
  double offset;  // y = h (offset + w) + b
  int64_t rows_per_group;
};

// mean (when centred) and r: one value per row, f32 (f64 for f64 rows).
void norm_rows(const RowNorm& n, const Tensor& x, const Tensor& w, const Tensor& b, double eps,
               const Tensor& y, const Tensor& mean, const Tensor& r);
// dx = r (u - mean(u) - h mean(u h)) with u = g (offset + w); RMS norm has no mean(u). Where they are defined:
// dw = sum of g h, db = sum of g, over the rows of each group.
void norm_rows_backward(const RowNorm& n, const Tensor& g, const Tensor& x, const Tensor& w,
                        const Tensor& mean, const Tensor& r, const Tensor& dx, const Tensor& dw,
                        const Tensor& db);
// Over the rows of each group: total = sum of g, product = sum of g (x - mean) r, both [groups * C] in g's
// dtype; an undefined mean counts as 0, an undefined r as 1. Undefined outputs are not computed.
void sum_groups(const Tensor& g, const Tensor& x, const Tensor& mean, const Tensor& r, int64_t rows_per_group,
                const Tensor& total, const Tensor& product);

}  // namespace rivulet::cuda
