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
inline Tensor attention(const Tensor& q, const Tensors& k, const Tensors& v, double scale) {
  return attention(q, cat(k, 1), cat(v, 1), scale);
}
struct GdnFusedInputs {
  Tensor q, k, v, gate, q_norm, k_norm, cos, sin, beta, decay;
  GdnState start;
};
inline GdnResult gdn_fused(const GdnFusedInputs& in, double key_scale, double eps) {
  const int64_t T = in.q.dim(1), S = in.q.dim(2), C = in.q.dim(3), D = 2 * in.cos.dim(1);
  const Shape per_head{1, T, S, C / D, D};
  const auto rotate = [&](const Tensor& x) {
    return rope(x.reshape({1, T * S, C / D, D}), in.cos, in.sin).reshape(per_head);
  };
  const Tensor q = relu(rms_norm(in.q.contiguous(), in.q_norm, eps)),
               k = relu(rms_norm(in.k.contiguous(), in.k_norm, eps)) * key_scale;
  GdnResult r = gdn(q.reshape(per_head), k.reshape(per_head), rotate(q), rotate(k), in.v.reshape(per_head),
                    sigmoid(in.beta), in.decay.to(in.q.dtype()), in.start, true);
  r.out = r.out.reshape({1, T, S, C}) * silu(in.gate);
  return r;
}

}  // namespace rivulet
