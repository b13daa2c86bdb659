// A small text encoder over a closed vocabulary, trained together with the network it conditions: word and
// position embeddings and one transformer layer.
#pragma once

#include "nn/linear.h"

namespace rivulet {

struct InstructionEncoder {
  Tensor word;      // [vocabulary, Ct]; row 0 is padding, row 1 the null instruction
  Tensor position;  // [L, Ct]
  NormWeight norm_attn, norm_mlp, norm_out;
  Linear qkv, proj, fc1, fc2;

  InstructionEncoder() = default;
  InstructionEncoder(int64_t vocabulary, int64_t tokens, int64_t channels, Device device = Device::cpu);
  void initialise(Rng& rng);
  template <class F>
  void visit(F&& f) {
    f("word", word);
    f("position", position);
    f("norm_attn", norm_attn);
    f("qkv", qkv);
    f("proj", proj);
    f("norm_mlp", norm_mlp);
    f("fc1", fc1);
    f("fc2", fc2);
    f("norm_out", norm_out);
  }

  int64_t tokens() const { return position.dim(0); }
  // ids i64 [B, L] with 0 for padding, mask u8 [B, L]. Returns [B, L, Ct].
  Tensor operator()(const Tensor& ids, const Tensor& mask) const;
};

}  // namespace rivulet
