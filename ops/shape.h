// Joining and cutting tensors of any dtype. (Views are members of Tensor.)
//
//   cat, stack   the gradient is cut the same way       pad   the gradient drops the border
//   split        the gradients are joined; the results are views of x
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

// Shapes agree outside dim.
Tensor cat(const Tensors& xs, int dim);
// Equal shapes; dim is a new dim of the result.
Tensor stack(const Tensors& xs, int dim);
// Zeros: `before` in front and `after` behind along dim.
Tensor pad(const Tensor& x, int dim, int64_t before, int64_t after);
// Sizes add up to the dim.
Tensors split(const Tensor& x, const std::vector<int64_t>& sizes, int dim);
// n equal parts.
Tensors chunk(const Tensor& x, int n, int dim);

const OpCase& cat_case();
const OpCase& stack_case();
const OpCase& pad_case();
const OpCase& split_case();

}  // namespace rivulet
