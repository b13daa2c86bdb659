// The blocks that video autoencoders are built of (vae_text.md 2.4 to 2.6), channels last: frames are
// [B, T, H, W, C]. Without learnt norms; the samplers carry their input past the convolution.
#pragma once

#include "nn/causal_conv3d.h"
#include "ops/space_depth.h"

namespace rivulet {

// x + conv2(silu(norm(conv1(silu(norm(x))))))
struct ResBlock {
  CausalConv3d conv1, conv2;

  ResBlock() = default;
  ResBlock(int64_t width, Border border, Device device)
      : conv1(width, width, border, device), conv2(width, width, border, device) {}
  template <class F>
  void visit(F&& f) {
    f("conv1", conv1);
    f("conv2", conv2);
  }
  Tensor operator()(const Tensor& x, TimePass& pass) const;
};

// Space to depth of a convolution plus that of its input, whose channels are averaged in groups. A temporal
// one (stride 2 in time) sees the first frame of a stream twice, so 1 + 2k frames become 1 + k.
struct Downsampler {
  BlockSize stride{1, 1, 1};
  int64_t out = 0;
  CausalConv3d conv;

  Downsampler() = default;
  Downsampler(int64_t in, int64_t out, const BlockSize& stride, Border border, Device device);
  template <class F>
  void visit(F&& f) {
    f("conv", conv);
  }
  // In a stream, a frame without a partner waits for the next call; undefined when that leaves nothing to do.
  Tensor operator()(const Tensor& x, TimePass& pass) const;
};

// Depth to space of a convolution plus that of its input, whose channels repeat. A temporal one leaves out
// the first frame of a stream, so 1 + k frames become 1 + 2k.
struct Upsampler {
  BlockSize stride{1, 1, 1};
  int64_t out = 0;
  CausalConv3d conv;

  Upsampler() = default;
  Upsampler(int64_t in, int64_t out, const BlockSize& stride, Border border, Device device);
  template <class F>
  void visit(F&& f) {
    f("conv", conv);
  }
  Tensor operator()(const Tensor& x, TimePass& pass) const;
};

}  // namespace rivulet
