// The decoder stack of Gemma-2, without the output layer: what a text encoder needs (vae_text.md 5.2). Tensor
// names are the released ones behind their leading "model.".
#pragma once

#include "models/gemma2/config.h"
#include "nn/linear.h"

namespace rivulet {

struct Gemma2Layer {
  NormWeight input_norm, post_attention_norm, pre_mlp_norm, post_mlp_norm;  // as distances from 1
  Linear q, k, v, o, gate, up, down;

  Gemma2Layer() = default;
  Gemma2Layer(const Gemma2Config& config, Device device);
  template <class F>
  void visit(F&& f) {
    f("self_attn.q_proj", q);
    f("self_attn.k_proj", k);
    f("self_attn.v_proj", v);
    f("self_attn.o_proj", o);
    f("mlp.gate_proj", gate);
    f("mlp.up_proj", up);
    f("mlp.down_proj", down);
    f("input_layernorm", input_norm);
    f("post_attention_layernorm", post_attention_norm);
    f("pre_feedforward_layernorm", pre_mlp_norm);
    f("post_feedforward_layernorm", post_mlp_norm);
  }
};

class Gemma2 {
 public:
  Gemma2() = default;
  // Parameters with unspecified contents; Device::meta describes the model without allocating it.
  explicit Gemma2(const Gemma2Config& config, Device device = Device::cpu);

  const Gemma2Config& config() const { return config_; }
  template <class F>
  void visit(F&& f) {
    f("embed_tokens.weight", embedding);
    f("layers", layers);
    f("norm", norm);
  }

  // The last hidden state, behind the final norm. ids i64 [B, N], mask u8 [B, N] (1 = real token) or
  // undefined
  // -> [B, N, width] in the dtype of the parameters, on the device of the layers. The table of embeddings may
  // stay in main memory: its rows are gathered where it lies, and the ids must be there.
  // soft_cap: see TextEncoderOptions.
  Tensor operator()(const Tensor& ids, const Tensor& mask, bool soft_cap) const;

  Tensor embedding;  // [vocabulary, width]
  std::vector<Gemma2Layer> layers;
  NormWeight norm;

 private:
  struct Pass;
  Tensor attention(const Gemma2Layer& layer, const Tensor& x, const Pass& pass, bool windowed) const;
  Gemma2Config config_;
};

}  // namespace rivulet
