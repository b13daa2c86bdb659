// Norms of rows with what stands before and after them, in one pass over memory (CUDA): a row stays in the
// registers of a warp, and the backward sums over rows while it goes through them. For f32 and bf16 rows that
// are whole packs of 16 bytes and not too long; whoever is refused composes the ops.
#pragma once

#include "ops/norm_rows.cuh"

namespace rivulet::cuda {

// x [rows, C] and y: dense rows at any distance, the others dense. Undefined members take no part.
struct NormPass {
  RowNorm norm;
  double eps = 0;
  Tensor x = {};
  Tensor branch = {}, gate = {}, sum = {};  // x + gate branch (no gate: ones) goes to `sum` and is what is normalised
  Tensor w = {}, b = {};               // [groups, C]
  Tensor cos = {}, sin = {};           // y is rotated, row i by row i % N of the tables [N, D / 2]
  Tensor y = {}, mean = {}, r = {};
};
// False when it cannot: nothing was done.
bool norm_pass(const NormPass& p);

// g is the gradient of y; its rows may lie at any distance, and those of x. With `branch`, x is the sum above
// and dx its whole gradient: `direct` (that of `sum`, may be undefined) is added to what comes through the norm.
struct NormPassBackward {
  RowNorm norm;
  Tensor g = {}, x = {}, w = {}, cos = {}, sin = {}, mean = {}, r = {};
  Tensor direct = {}, branch = {}, gate = {};
  Tensor dx = {}, dbranch = {};
  Tensor dw = {}, db = {}, dgate = {};  // [groups, C], sums over the rows of a group
};
bool norm_pass_backward(const NormPassBackward& p);

}  // namespace rivulet::cuda
