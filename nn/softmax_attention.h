// The softmax layers: gated self-attention over [kept chunks | current], and cross-attention to the text.
#pragma once

#include "nn/gdn_attention.h"

namespace rivulet {

// Keys and values that later chunks may attend to: keys rotated by their absolute positions.
struct KeyValue {
  Tensor k, v;  // [B, tokens, nH, D]
};

// Gated softmax self-attention (dit.md 3), no mask: every query sees every key.
struct SoftmaxAttention {
  int64_t heads = 0;
  Linear q, k, v, proj, output_gate;
  NormWeight q_norm, k_norm;

  SoftmaxAttention() = default;
  // temporal_taps: q and k are stored as [C, C, 3], as in the streaming release.
  SoftmaxAttention(int64_t width, int64_t heads, bool temporal_taps, Device device);
  template <class F>
  void visit(F&& f) {
    f("q_norm", q_norm);
    f("k_norm", k_norm);
    f("q", q);
    f("k", k);
    f("v", v);
    f("proj", proj);
    f("output_gate", output_gate);
  }

  // u [B, T, S, C]; `window` holds the chunks before that may be seen, in any order. The current chunk's
  // own keys and values go to *current when given, on the tape. Returns [B, T, S, C].
  Tensor operator()(const Tensor& u, const Rope& rope, const std::vector<KeyValue>& window, KeyValue* current,
                    const BlockPrecision* precision = nullptr) const;
};

// Cross-attention (dit.md 5): no RoPE, RMSNorm over all channels of q and k.
struct CrossAttention {
  int64_t heads = 0;
  Linear q_linear, kv_linear, proj;
  NormWeight q_norm, k_norm;

  CrossAttention() = default;
  CrossAttention(int64_t width, int64_t heads, Device device);
  template <class F>
  void visit(F&& f) {
    f("q_linear", q_linear);
    f("kv_linear", kv_linear);
    f("proj", proj);
    f("q_norm", q_norm);
    f("k_norm", k_norm);
  }

  // Keys and values of the projected text y [B, L, C]: they depend on the prompt alone.
  KeyValue text_keys(const Tensor& y, const BlockPrecision* precision = nullptr) const;
  // The same of a product that was made elsewhere, kv_linear(y) [B, L, 2C].
  KeyValue split_keys(const Tensor& kv) const;
  // h [B, T, S, C]; mask [B, L] u8, 1 for real tokens.
  Tensor operator()(const Tensor& h, const KeyValue& text, const Tensor& mask,
                    const BlockPrecision* precision = nullptr) const;
};

}  // namespace rivulet
