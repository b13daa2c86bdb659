// The gated delta net layer (dit.md 2): linear attention with a fixed-size state per head.
#pragma once

#include "nn/precision.h"
#include "ops/gdn.h"

namespace rivulet {

// Where a run of frames sits: T frames of H x W tokens, the first being latent frame `first` of the stream.
struct Grid {
  int64_t T = 0, H = 0, W = 0, first = 0;
  int64_t tokens_per_frame() const { return H * W; }
  int64_t tokens() const { return T * H * W; }
};

// cos and sin of the 3-D RoPE angles of a grid, [tokens, D/2].
struct Rope {
  Tensor cos, sin;
};

struct GdnAttention {
  int64_t heads = 0;
  Linear q, k, v, proj, output_gate, beta_proj, gate_proj;
  NormWeight q_norm, k_norm;
  Tensor A_log, dt_bias;  // [nH]

  GdnAttention() = default;
  GdnAttention(int64_t width, int64_t heads, Device device);
  template <class F>
  void visit(F&& f) {
    f("A_log", A_log);
    f("dt_bias", dt_bias);
    f("q_norm", q_norm);
    f("k_norm", k_norm);
    f("q", q);
    f("k", k);
    f("v", v);
    f("proj", proj);
    f("output_gate", output_gate);
    f("beta_proj", beta_proj);
    f("gate_proj", gate_proj);
  }

  // u [B, T, S, C], modulated. `start` is the state after the frames before (undefined: none); the state
  // after these frames goes to *end when end is given, on the tape. Returns [B, T, S, C].
  Tensor operator()(const Tensor& u, const Grid& grid, const Rope& rope, const GdnState& start, GdnState* end,
                    const BlockPrecision* precision = nullptr) const;
};

}  // namespace rivulet
