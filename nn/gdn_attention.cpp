#include "nn/gdn_attention.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/rope.h"

namespace rivulet {

constexpr float kQkNormEps = 1e-5f;

GdnAttention::GdnAttention(int64_t width, int64_t heads, Device device)
    : heads(heads),
      q({width, width, 1}, false, device),
      k({width, width, 1}, false, device),
      v({width, width}, false, device),
      proj({width, width}, true, device),
      output_gate({width, width}, true, device),
      beta_proj({heads, width}, true, device),
      gate_proj({heads, width}, true, device),
      q_norm{Tensor({width}, DType::f32, device)},
      k_norm{Tensor({width}, DType::f32, device)},
      A_log({heads}, DType::f32, device),
      dt_bias({heads}, DType::f32, device) {}

Tensor GdnAttention::operator()(const Tensor& u, const Grid& grid, const Rope& rope_table,
                                const GdnState& start, GdnState* end) const {
  const int64_t B = u.dim(0), T = u.dim(1), S = u.dim(2), C = u.dim(3), D = C / heads;
  const Shape per_head{B, T, S, heads, D}, flat{B, T * S, heads, D};
  const auto rotate = [&](const Tensor& x) {
    return rope(x.reshape(flat), rope_table.cos, rope_table.sin).reshape(per_head);
  };
  const double key_scale = 1 / std::sqrt(double(D * grid.tokens_per_frame()));
  const Tensor queries = relu(rms_norm(q(u), q_norm.weight, kQkNormEps));
  const Tensor keys = relu(rms_norm(k(u), k_norm.weight, kQkNormEps)) * key_scale;
  const Tensor beta = sigmoid(beta_proj(u));  // [B, T, S, nH]
  // The decay is close to 1, where a half has no digits left: f32 from the gate's output on.
  const DType wide = accumulate_dtype(u.dtype());
  const Tensor rate = softplus(gate_proj(mean(u, {2})).to(wide) + dt_bias.to(wide));
  const Tensor decay = exp(neg(exp(A_log.to(wide)) * rate));  // [B, T, nH], in (0, 1]
  const auto [out, state] =
      gdn(queries.reshape(per_head), keys.reshape(per_head), rotate(queries), rotate(keys),
          v(u).reshape(per_head), beta, decay, start, /*reverse_scan=*/true);
  if (end) *end = {state.kv.detach(), state.z.detach()};
  return proj(out.reshape({B, T, S, C}) * silu(output_gate(u)));
}

}  // namespace rivulet
