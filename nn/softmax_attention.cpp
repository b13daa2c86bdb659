#include "nn/softmax_attention.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/glu.h"
#include "ops/norm.h"
#include "ops/norm_rope.h"
#include "ops/reduce.h"
#include "ops/shape.h"

namespace rivulet {

namespace {

constexpr float kSelfNormEps = 1e-5f, kCrossNormEps = 1e-6f;
// The largest weight of a row before it is divided by their sum, at the top of what E4M3 holds.
constexpr double kWeightRange = 256;

// Attention whose two products are of E4M3 numbers: q, k, v with one scale each, and the weights exp(s - max)
// with a fixed one. Sums, maxima and the divisor stay wide.
Tensor attention_in_fp8(const Tensor& q, const Tensors& keys, const Tensors& values, double scale) {
  const auto heads_first = [](const Tensor& x) {
    return fake_quantize(x, Format::fp8_tensor).permute({0, 2, 1, 3});
  };
  const Tensor s = matmul(heads_first(q), heads_first(cat(keys, 1)).transpose(-1, -2)) * scale;
  const Tensor e = exp(s - max(s.detach(), {3}, true)) * kWeightRange;
  const Tensor out = matmul(fake_quantize(e, Format::fp8_tensor, full({1}, 1, DType::f32, q.device())),
                            heads_first(cat(values, 1))) /
                     sum(e, {3}, true);
  return out.permute({0, 2, 1, 3}).contiguous();
}

}  // namespace

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
                                    const std::vector<KeyValue>& window, KeyValue* current,
                                    const BlockPrecision* precision) const {
  SharedInput in(precision, u);
  const int64_t B = u.dim(0), N = u.dim(1) * u.dim(2), C = u.dim(3), D = C / heads;
  const Shape per_head{B, N, heads, D};
  const auto feature = [&](const Tensor& x, const Tensor& weight) {
    return rms_norm_rope(x.reshape({B, N, C}), weight, rope_table.cos, rope_table.sin, kSelfNormEps);
  };
  const Tensor queries = feature(linear_as(in, Layer::sa_q, q), q_norm.weight);
  const KeyValue own{feature(linear_as(in, Layer::sa_k, k), k_norm.weight),
                     linear_as(in, Layer::sa_v, v).reshape(per_head)};
  Tensors keys, values;
  for (const KeyValue& kept : window) {
    keys.push_back(kept.k);
    values.push_back(kept.v);
  }
  keys.push_back(own.k);
  values.push_back(own.v);
  const double scale = 1 / std::sqrt(double(D));
  const Tensor out = hooked(precision, Layer::scores, [&](const BlockPrecision* p) {
    return p && !p->at(Layer::scores).plain() ? attention_in_fp8(queries, keys, values, scale)
                                              : attention(queries, keys, values, scale);
  });
  if (current) *current = own;
  SharedInput gated(precision, mul_silu(out.reshape(u.shape()), linear_as(in, Layer::sa_gate, output_gate)));
  return linear_as(gated, Layer::sa_o, proj);
}

CrossAttention::CrossAttention(int64_t width, int64_t heads, Device device)
    : heads(heads),
      q_linear({width, width}, true, device),
      kv_linear({2 * width, width}, true, device),
      proj({width, width}, true, device),
      q_norm{Tensor({width}, DType::f32, device)},
      k_norm{Tensor({width}, DType::f32, device)} {}

KeyValue CrossAttention::text_keys(const Tensor& y, const BlockPrecision* precision) const {
  SharedInput in(precision, y);
  return split_keys(linear_as(in, Layer::ca_kv, kv_linear));
}

KeyValue CrossAttention::split_keys(const Tensor& kv) const {
  const int64_t B = kv.dim(0), L = kv.dim(1), C = kv.dim(2) / 2, D = C / heads;
  const Tensor k = rms_norm(kv.slice(2, 0, C).contiguous(), k_norm.weight, kCrossNormEps);
  return {k.reshape({B, L, heads, D}), kv.slice(2, C, 2 * C).reshape({B, L, heads, D})};
}

Tensor CrossAttention::operator()(const Tensor& h, const KeyValue& text, const Tensor& mask,
                                  const BlockPrecision* precision) const {
  SharedInput in(precision, h);
  const int64_t B = h.dim(0), N = h.dim(1) * h.dim(2), C = h.dim(3), D = C / heads;
  const Tensor q =
      rms_norm(linear_as(in, Layer::ca_q, q_linear), q_norm.weight, kCrossNormEps).reshape({B, N, heads, D});
  const Tensor out = attention(q, text.k, text.v, 1 / std::sqrt(double(D)), mask);
  SharedInput mixed(precision, out.reshape(h.shape()));
  return linear_as(mixed, Layer::ca_o, proj);
}

}  // namespace rivulet
