#include "nn/softmax_attention.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/glu.h"
#include "ops/norm.h"
#include "ops/norm_rope.h"

namespace rivulet {

constexpr float kSelfNormEps = 1e-5f, kCrossNormEps = 1e-6f;

SoftmaxAttention::SoftmaxAttention(int64_t width, int64_t heads, bool temporal_taps, Device device)
    : heads(heads),
      q(temporal_taps ? Shape{width, width, 3} : Shape{width, width}, false, device),
      k(temporal_taps ? Shape{width, width, 3} : Shape{width, width}, false, device),
      v({width, width}, false, device),
      proj({width, width}, true, device),
      output_gate({width, width}, true, device),
      q_norm{Tensor({width}, DType::f32, device)},
      k_norm{Tensor({width}, DType::f32, device)} {}

Tensor SoftmaxAttention::operator()(const Tensor& u, const Rope& rope_table,
                                    const std::vector<KeyValue>& window, KeyValue* current) const {
  const int64_t B = u.dim(0), N = u.dim(1) * u.dim(2), C = u.dim(3), D = C / heads;
  const Shape per_head{B, N, heads, D};
  const auto feature = [&](const Tensor& x, const Tensor& weight) {
    return rms_norm_rope(x.reshape({B, N, C}), weight, rope_table.cos, rope_table.sin, kSelfNormEps);
  };
  const Tensor queries = feature(q(u), q_norm.weight);
  const KeyValue own{feature(k(u), k_norm.weight), v(u).reshape(per_head)};
  Tensors keys, values;
  for (const KeyValue& kept : window) {
    keys.push_back(kept.k);
    values.push_back(kept.v);
  }
  keys.push_back(own.k);
  values.push_back(own.v);
  const Tensor out = attention(queries, keys, values, 1 / std::sqrt(double(D)));
  if (current) *current = own;
  return proj(mul_silu(out.reshape(u.shape()), output_gate(u)));
}

CrossAttention::CrossAttention(int64_t width, int64_t heads, Device device)
    : heads(heads),
      q_linear({width, width}, true, device),
      kv_linear({2 * width, width}, true, device),
      proj({width, width}, true, device),
      q_norm{Tensor({width}, DType::f32, device)},
      k_norm{Tensor({width}, DType::f32, device)} {}

KeyValue CrossAttention::text_keys(const Tensor& y) const {
  const int64_t B = y.dim(0), L = y.dim(1), C = y.dim(2), D = C / heads;
  const Tensor kv = kv_linear(y);
  const Tensor k = rms_norm(kv.slice(2, 0, C).contiguous(), k_norm.weight, kCrossNormEps);
  return {k.reshape({B, L, heads, D}), kv.slice(2, C, 2 * C).reshape({B, L, heads, D})};
}

Tensor CrossAttention::operator()(const Tensor& h, const KeyValue& text, const Tensor& mask) const {
  const int64_t B = h.dim(0), N = h.dim(1) * h.dim(2), C = h.dim(3), D = C / heads;
  const Tensor q = rms_norm(q_linear(h), q_norm.weight, kCrossNormEps).reshape({B, N, heads, D});
  const Tensor out = attention(q, text.k, text.v, 1 / std::sqrt(double(D)), mask);
  return proj(out.reshape(h.shape()));
}

}  // namespace rivulet
