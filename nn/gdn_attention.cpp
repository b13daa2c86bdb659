#include "nn/gdn_attention.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/gdn_fused.h"
#include "ops/reduce.h"

namespace rivulet {

constexpr double kQkNormEps = 1e-5;

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
                                const GdnState& start, GdnState* end, const BlockPrecision* precision) const {
  SharedInput in(precision, u);
  const int64_t D = u.dim(3) / heads;
  // The decay acts once a frame for the whole stream: it is not rounded to the type of the model.
  const DType wide = accumulate_dtype(u.dtype());
  const Tensor rate = softplus(gate_proj(mean(u, {2})).to(wide) + dt_bias.to(wide));
  const Tensor decay = exp(neg(exp(A_log.to(wide)) * rate));  // [B, T, nH], in (0, 1]
  const auto [out, state] =
      gdn_fused({.q = linear_as(in, Layer::sa_q, q),
                 .k = linear_as(in, Layer::sa_k, k),
                 .v = linear_as(in, Layer::sa_v, v),
                 .gate = linear_as(in, Layer::sa_gate, output_gate),
                 .q_norm = q_norm.weight,
                 .k_norm = k_norm.weight,
                 .cos = rope_table.cos,
                 .sin = rope_table.sin,
                 .beta = beta_proj(u),
                 .decay = decay,
                 .start = start},
                /*key_scale=*/1 / std::sqrt(double(D * grid.tokens_per_frame())), kQkNormEps);
  if (end) *end = state;
  SharedInput mixed(precision, out);
  return linear_as(mixed, Layer::sa_o, proj);
}

}  // namespace rivulet
