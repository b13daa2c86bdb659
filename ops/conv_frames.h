// Convolutions for inference over frames that lie wherever there was room: a stream's carried frames and its
// new ones are read and written in place, the border in space lies around every frame, and what follows the
// convolution (residual, pixel norm and SiLU, blocks of pixels into channels or back) happens as it stores.
//
//   y = bias + sum over taps u of w[u] x[o + u]         stride 1; x with its border around it
//   v = y + add, channels moved to pixels or back       raw receives v
//   normed receives n / (1 + e^-n), n = v / sqrt(mean(v^2) + 1e-8) over the channels of a pixel
//
// f32 on the CPU, bf16 (sums in f32) on the GPU. Nothing is recorded for gradients.
#pragma once

#include "ops/conv.h"
#include "ops/space_depth.h"

namespace rivulet {

// Frames [H, W, C] at places of one or two stores [n, H + 2 rim, W + 2 rim, C]. Whoever writes a frame writes
// its rim too: `border` of the inside, left alone for Border::zeros.
struct Frames {
  static constexpr int16_t kZero = INT16_MIN;  // instead of a place: a frame of zeros, to read
  Tensor stores[2];
  std::vector<int16_t> at;  // frame t is place at[t] of the first store, or place -1 - at[t] of the second
  int64_t rim = 0;
  Border border = Border::zeros;

  Frames() = default;
  // All of a dense store, in order.
  explicit Frames(const Tensor& store, int64_t rim = 0, Border border = Border::zeros);
  explicit operator bool() const { return stores[0].defined() || stores[1].defined(); }
  const Tensor& any() const { return stores[0] ? stores[0] : stores[1]; }
  int64_t count() const { return int64_t(at.size()); }
  int64_t height() const { return any().dim(1) - 2 * rim; }
  int64_t width() const { return any().dim(2) - 2 * rim; }
  int64_t channels() const { return any().dim(3); }
};

struct FramesConv {
  Frames x;     // count() = frames of y + kt - 1; its rim is a kernel's half, or 0 with zeros beyond the edges
  Tensor w;     // [N, kt, kh, kw, C], odd kh and kw
  Tensor bias;  // f32 [N] or undefined
  Tensor add;   // dense, as the frames written but without rim; may be raw's own memory. Or undefined
  Frames raw, normed;  // at least one
  // What becomes of the N channels of y. to_depth: channel n of cell (dt, dh, dw) of a block of pixels becomes
  // channel ((dt sh + dh) sw + dw) N + n, and to_space is the inverse: cells are the slower part of the index
  // in both, unlike in ops/space_depth. to_space drops the first `drop` frames of its result.
  enum class Move : uint8_t { none, to_depth, to_space } move = Move::none;
  BlockSize block{1, 1, 1};
  int64_t drop = 0;
};

// On the GPU, C and N are multiples of 8, and of 64 channels per cell with to_space. Throws where the shapes do not fit.
void conv_frames(const FramesConv& job);
// normed (as above) of the frames x. Both of one size and dtype.
void pixel_norm_frames(const Frames& x, const Frames& normed);
void copy_frames(const Frames& x, const Frames& to);

// `norm`: pixel_norm_frames, otherwise copy_frames.
KERNELS(void conv_frames(const FramesConv& job); void move_frames(const Frames& x, const Frames& to, bool norm);)

constexpr int64_t kMostFrames = 40;  // of one call on the GPU

}  // namespace rivulet
