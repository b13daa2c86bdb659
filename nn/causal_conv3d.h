// 3-D convolution over frames, and how a run of frames is seen in time: causally, one stream piece by piece,
// or with the frames on both sides.
#pragma once

#include "nn/module.h"
#include "ops/conv.h"

namespace rivulet {

// What one layer remembers of a stream. The tensors are written once and then shared: copying a state forks
// the stream.
struct LayerState {
  Tensors frames;        // a convolution: the last frames of its own input, each [B, H, W, C], oldest first
  Tensor pending;        // a temporal downsampler: an input frame that waits for its partner, [B, 1, H, W, C]
  bool started = false;  // a temporal sampler: the start of the stream is behind it
};
// In the order in which the network's layers ask. Empty at the start of a stream.
using VideoState = std::vector<LayerState>;

// One pass of a network over frames. Every layer with a memory calls slot() once, always in the same order.
class TimePass {
 public:
  // Whole clips, [first frame] to [last frame].
  static TimePass clip(bool causal) { return TimePass(causal, nullptr); }
  // The next frames of a stream; `state` is advanced by the pass.
  static TimePass stream(VideoState& state) { return TimePass(true, &state); }

  bool causal() const { return causal_; }
  bool streams() const { return state_ != nullptr; }
  // The memory of the next layer; a fresh one for clips.
  LayerState& slot() {
    if (!state_) return fresh_ = {};
    if (next_ == state_->size()) state_->emplace_back();
    return (*state_)[next_++];
  }

 private:
  TimePass(bool causal, VideoState* state) : causal_(causal), state_(state) {}
  bool causal_;
  VideoState* state_;
  size_t next_ = 0;
  LayerState fresh_;
};

// Keeps the size of frames and their number. In time it is padded by repeating: causal, the first frame of
// the stream on the left; otherwise the first and the last frame. In space by `border`. Computes in the dtype
// of its input: f32 weights may meet bf16 frames, and get their gradients in f32.
struct CausalConv3d {
  Tensor weight, bias;  // [Co, C, kt, kh, kw] with odd kh and kw, [Co]
  Border border = Border::zeros;

  CausalConv3d() = default;
  CausalConv3d(int64_t in, int64_t out, Border border, Device device,
               const std::array<int64_t, 3>& kernel = {3, 3, 3})
      : weight({out, in, kernel[0], kernel[1], kernel[2]}, DType::f32, device),
        bias({out}, DType::f32, device),
        border(border) {}
  // Released names nest the convolution.
  template <class F>
  void visit(F&& f) {
    f("conv.weight", weight);
    f("conv.bias", bias);
  }

  // x [B, T, H, W, C], T >= 1.
  Tensor operator()(const Tensor& x, TimePass& pass) const;
};

// The last `count` of the frames kept so far and those of x [B, T, H, W, C]. Before the first call the stream
// counts as having shown x's first frame.
Tensors last_frames(const Tensors& kept, const Tensor& x, int64_t count);

// Moves every 5-D weight of a module to the memory order that conv3d reads in place, for inference: the
// values and shapes stay. (The optimizer wants the plain order.)
template <class M>
void pack_convs(M& module) {
  const NoGrad off;
  for_each_tensor(module, [](const std::string&, Tensor& t) {
    if (t.dims() != 5) return;
    const Tensor packed = channels_last_weight(t.shape(), t.device(), t.dtype());
    packed.copy_from(t.detach());
    t = packed;
  });
}

}  // namespace rivulet
