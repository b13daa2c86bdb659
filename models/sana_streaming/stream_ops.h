// Compositions that stand in for the fused ops.
#pragma once

#include "ops/attention.h"
#include "ops/depthwise_conv.h"
#include "ops/elementwise.h"
#include "ops/gdn.h"
#include "ops/matmul.h"
#include "ops/modulate.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/shape.h"
#include "ops/temporal_conv.h"

namespace rivulet {

struct ResidualNorm {
  Tensor h, u;
};
inline ResidualNorm gate_residual_norm(const Tensor& h, const Tensor& gate, const Tensor& branch,
                                       const Tensor& shift, const Tensor& scale, double eps = 1e-6) {
  const Tensor sum = gate_residual(h, gate, branch);
  return {sum, layer_norm_modulate(sum, shift, scale, eps)};
}
inline Tensor rms_norm_rope(const Tensor& x, const Tensor& w, const Tensor& cos, const Tensor& sin,
                            double eps) {
  const int64_t D = 2 * cos.dim(1);
  return rope(rms_norm(x.contiguous(), w, eps).reshape({x.dim(0), x.dim(1), x.dim(2) / D, D}), cos, sin);
}
inline Tensor mul_silu(const Tensor& a, const Tensor& g) { return a * silu(g); }
inline Tensor silu_depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias) {
  return depthwise_glu(silu(x), w, bias);
}

}  // namespace rivulet
