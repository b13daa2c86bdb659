// The SANA-Streaming transformer: Gated DeltaNet blocks with a fixed-size recurrent state and a few softmax
// blocks over [sink chunk | recent chunks | current chunk]. One class serves the bidirectional model (no
// state given) and the streaming one. Tensor names are the released ones (dit.md 7).
#pragma once

#include "models/sana_streaming/config.h"
#include "nn/glumbconv.h"
#include "nn/softmax_attention.h"

namespace rivulet {

// What one block remembers of the stream. A softmax block keeps the chunks of its window with their index.
struct BlockState {
  GdnState gdn;
  std::vector<std::pair<int64_t, KeyValue>> window;
  Tensor conv_tail;  // [B, S, C]
};

// Memory of a stream: plain values, constant in size once the window is full. Copying shares the tensors,
// which nobody writes in place, so a copy is a fork, and a graph that read it may run again later.
struct StreamState {
  int64_t chunk = 0;   // chunks absorbed
  int64_t frames = 0;  // latent frames absorbed
  std::vector<BlockState> blocks;
  bool on_tape = false;  // what is written next stays differentiable; otherwise it is detached
};

// What the blocks need of a prompt; computed once per prompt.
struct TextContext {
  std::vector<KeyValue> keys;  // per block
  Tensor mask;                 // [B, L] u8
};

struct Block {
  Tensor scale_shift_table;  // [6, C]
  bool softmax = false;
  GdnAttention gdn;
  SoftmaxAttention attn;
  CrossAttention cross_attn;
  GluMbConv mlp;

  Block() = default;
  Block(const DitConfig& config, bool softmax, Device device);
  template <class F>
  void visit(F&& f) {
    f("scale_shift_table", scale_shift_table);
    if (softmax)
      f("attn", attn);
    else
      f("attn", gdn);
    f("cross_attn", cross_attn);
    f("mlp", mlp);
  }
};

class Dit {
 public:
  // Parameters with unspecified contents; Device::meta describes the model without allocating it.
  explicit Dit(const DitConfig& config, Device device = Device::cpu);
  // Training start: scaled normal weights, gates near plain linear attention (training.md 0), the output
  // layer and every branch's last layer small.
  void initialise(Rng& rng);

  // Keeps the memory of the GDN blocks from growing: call it after each step of training. The delta rule
  // overshoots once an eigenvalue of K' B K passes 2; heads * max(k_norm)^2 bounds the largest, since RMSNorm
  // leaves a mean square of w^2 over all channels and the keys carry 1 / sqrt(D S).
  // `trained` are the values to be bounded, by their names in this module with `prefix` in front.
  void bound_memory(const NamedTensors& trained, const std::string& prefix = "") const;

  const DitConfig& config() const { return config_; }
  template <class F>
  void visit(F&& f) {
    f("x_embedder.proj", x_embedder);
    f("t_embedder.mlp.0", t_embedder_0);
    f("t_embedder.mlp.2", t_embedder_2);
    f("t_block.1", t_block);
    f("y_embedder.y_proj.fc1", y_fc1);
    f("y_embedder.y_proj.fc2", y_fc2);
    f("attention_y_norm", attention_y_norm);
    f("blocks", blocks);
    f("final_layer.scale_shift_table", final_table);
    f("final_layer.linear", final_linear);
  }

  // What the blocks and the output layer add to their tables at timestep t: temb [1, C] and t0 [6, C].
  std::pair<Tensor, Tensor> timestep(double t) const;

  // The text as the blocks' cross-attention reads it, [B, L, C].
  Tensor text_features(const Tensor& text) const;
  // text [B, L, caption channels], mask [B, L] u8 (1 = real token).
  TextContext text_context(const Tensor& text, const Tensor& mask) const;

  // Called with the hidden state [B, N, C] after each block; for tests and for sensitivity measurements.
  using BlockHook = std::function<void(int64_t block, const Tensor& hidden)>;

  // x: [B, 2 * latent channels, T, H, W], noisy target above clean source. t: [B] or per frame [B, T],
  // in 0..1000. Returns the network's output [B, latent channels, T, H, W], in the dtype of the parameters
  // (all of one; see convert() in nn/module.h).
  //   past    memory of the chunks before (null: none; frames count from 0)
  //   next    when given, receives past plus this chunk: the cache pass
  Tensor operator()(const Tensor& x, const Tensor& t, const TextContext& text,
                    const StreamState* past = nullptr, StreamState* next = nullptr,
                    const BlockHook& hook = {}) const;

  Linear x_embedder, t_embedder_0, t_embedder_2, t_block, y_fc1, y_fc2, final_linear;
  NormWeight attention_y_norm;
  std::vector<Block> blocks;
  Tensor final_table;  // [2, C]
  // Keep only what goes into each block and run it again in the backward: a small part of the memory of a
  // training step for a third more work.
  bool recompute = false;
  // The number formats of the layers' products, rounded here and multiplied in the model's own type: how
  // a policy is searched for and trained with. Where it depends on t, all of a batch must have one t.
  Policy precision;
  // Keeps rounded weights between passes that record no gradient; whoever changes a weight clears it.
  std::shared_ptr<RoundedWeights> rounded;
  // Sees the products of all blocks, and of text_context; for measurements.
  ProductHook product_hook;

 private:
  struct Pass;
  Tensor run_block(const Block& block, const Tensor& h, const Pass& pass, const KeyValue& text,
                   const BlockState* past, BlockState* own) const;
  Tensor run_again_in_backward(const Block& block, const Tensor& h, const Pass& pass, const KeyValue& text,
                               const BlockState* past, BlockState* own) const;
  Tensor self_attention(const Block& block, const Tensor& u, const Pass& pass, const BlockState* past,
                        BlockState* own, const BlockPrecision* here) const;
  BlockState with_window(const BlockState* past, BlockState own, int64_t chunk) const;
  DitConfig config_;
};

}  // namespace rivulet
