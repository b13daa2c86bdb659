#include "models/taeltx2/taeltx2.h"

#include "ops/elementwise.h"
#include "ops/shape.h"
#include "ops/space_depth.h"

namespace rivulet {
namespace {

constexpr int64_t kPatch = 4, kFramesPerLatent = 8, kPixelsPerLatent = 32;

// Pairs of frames, the earlier one's channels first, mixed to one: a strided convolution over time. `pair` is
// [Co, 2 C, 1, 1]. A frame without a partner waits in the state.
Tensor pool_pairs(const Tensor& x, const Tensor& pair, TimePass& pass) {
  LayerState& state = pass.slot();
  const Tensor in = state.pending ? cat({state.pending, x}, 1) : x;
  const int64_t whole = in.dim(1) / 2 * 2;
  state.pending = whole < in.dim(1) ? in.slice(1, whole, whole + 1).detach().clone() : Tensor();
  if (whole == 0) return {};
  ConvSteps<3> steps;
  steps.stride[0] = 2;
  const Tensor taps = pair.reshape({pair.dim(0), 2, pair.dim(1) / 2, 1, 1}).permute({0, 2, 1, 3, 4});
  return conv3d(in.slice(1, 0, whole), taps, {}, steps);
}

// Every frame to two, the first half of the mixed channels being the earlier one.
Tensor grow_pairs(const Tensor& x, const FrameConv& mix) {
  const Tensor y = mix(x);
  const int64_t B = y.dim(0), T = y.dim(1), H = y.dim(2), W = y.dim(3), c = y.dim(4) / 2;
  return y.reshape({B, T, H, W, 2, c}).permute({0, 1, 4, 2, 3, 5}).reshape({B, 2 * T, H, W, c});
}

// Every pixel to two by two of its kind.
Tensor doubled(const Tensor& x) {
  const int64_t B = x.dim(0), T = x.dim(1), H = x.dim(2), W = x.dim(3), c = x.dim(4);
  return x.reshape({B * T, H, 1, W, 1, c}).expand({B * T, H, 2, W, 2, c}).reshape({B, T, 2 * H, 2 * W, c});
}

}  // namespace

Tensor with_last_repeated(const Tensor& x, int64_t multiple) {
  const int64_t T = x.dim(1), more = (multiple - T % multiple) % multiple;
  if (more == 0) return x;
  Shape shape = x.shape();
  shape[1] = more;
  return cat({x, x.slice(1, T - 1, T).expand(shape)}, 1);
}

Tensor FrameConv::operator()(const Tensor& x, int64_t stride) const {
  ConvSteps<3> steps;
  for (int i : {1, 2}) {
    steps.stride[i] = stride;
    steps.before[i] = steps.after[i] = weight.dim(2) / 2;
  }
  return conv3d(x, weight.unsqueeze(2), bias, steps);
}

MemBlock::MemBlock(int64_t width, Device device)
    : conv0(2 * width, width, 3, true, device),
      conv2(width, width, 3, true, device),
      conv4(width, width, 3, true, device) {}

Tensor MemBlock::operator()(const Tensor& x, TimePass& pass) const {
  // conv0 sees the channels of x above those of the frame before: two taps in time, zeros before the stream.
  const int64_t c = x.dim(4);
  const Tensor now = conv0.weight.slice(1, 0, c), past = conv0.weight.slice(1, c, 2 * c);
  ConvSteps<3> steps(1, 1);
  steps.after[0] = 0;
  LayerState& state = pass.slot();
  const Tensor h = relu(conv3d(x, stack({past, now}, 2), conv0.bias, steps, state.frames));
  if (pass.streams()) state.frames = last_frames(state.frames, x, 1);
  return relu(conv4(relu(conv2(h))) + x);
}

TinyVae::TinyVae(const TinyVaeConfig& c, Device device) : config_(c) {
  check(c.decoder_widths.size() == 4, "taeltx2: ", c.decoder_widths.size(), " decoder widths, must be 4");
  const int64_t colours = 3 * kPatch * kPatch, w = c.encoder_width;
  encoder_in = FrameConv(colours, w, 3, true, device);
  encoder_out = FrameConv(w, c.latent_channels, 3, true, device);
  decoder_in = FrameConv(c.latent_channels, c.decoder_widths[0], 3, true, device);
  decoder_out = FrameConv(c.decoder_widths[3], colours, 3, true, device);
  for (size_t s = 0; s < 3; ++s) {
    const int64_t n = c.decoder_widths[s];
    pool[s] = FrameConv(2 * w, w, 1, false, device);
    down[s] = FrameConv(w, w, 3, false, device);
    grow[s] = FrameConv(n, 2 * n, 1, false, device);
    up[s] = FrameConv(n, c.decoder_widths[s + 1], 3, false, device);
    for (int i = 0; i < 3; ++i) {
      encoder_blocks.emplace_back(w, device);
      decoder_blocks.emplace_back(n, device);
    }
  }
}

Tensor TinyVae::run_encoder(const Tensor& frames, TimePass& pass) const {
  check(frames.dims() == 5 && frames.dim(4) == 3 && frames.dim(2) % kPixelsPerLatent == 0 &&
            frames.dim(3) % kPixelsPerLatent == 0 && frames.numel() > 0,
        "taeltx2: frames have shape ", frames.shape(), ", wanted [B, T, H, W, 3] with H and W multiples of ",
        kPixelsPerLatent);
  Tensor h = relu(encoder_in(space_to_depth(frames, {1, kPatch, kPatch})));
  for (int s = 0; s < 3; ++s) {
    h = pool_pairs(h, pool[s].weight, pass);
    if (!h) return h;
    h = down[s](h, 2);
    for (int i = 0; i < 3; ++i) h = encoder_blocks[size_t(3 * s + i)](h, pass);
  }
  return encoder_out(h).permute({0, 4, 1, 2, 3});
}

Tensor TinyVae::run_decoder(const Tensor& latents, TimePass& pass) const {
  check(latents.dims() == 5 && latents.dim(1) == config_.latent_channels && latents.numel() > 0,
        "taeltx2: latents have shape ", latents.shape(), ", wanted [B, ", config_.latent_channels,
        ", T, H, W]");
  LayerState& start = pass.slot();
  const int64_t dropped = start.started ? 0 : kFramesPerLatent - 1;
  start.started = true;
  Tensor h = relu(decoder_in(3.0 * tanh(latents.permute({0, 2, 3, 4, 1}) / 3.0)));
  for (int s = 0; s < 3; ++s) {
    for (int i = 0; i < 3; ++i) h = decoder_blocks[size_t(3 * s + i)](h, pass);
    h = up[s](doubled(grow_pairs(h, grow[s])));  // a 1x1 convolution may as well come before the doubling
  }
  const Tensor frames = clamp(depth_to_space(decoder_out(relu(h)), {1, kPatch, kPatch}), 0, 1);
  return frames.slice(1, dropped, frames.dim(1));
}

Tensor TinyVae::encode(const Tensor& frames) const {
  check(frames.dims() == 5 && frames.dim(1) > 0, "taeltx2: frames have shape ", frames.shape());
  TimePass pass = TimePass::clip(true);
  return run_encoder(with_last_repeated(frames, kFramesPerLatent), pass);
}

Tensor TinyVae::encode(const Tensor& frames, VideoState& state) const {
  const NoGrad off;
  VideoState next = state;
  TimePass pass = TimePass::stream(next);
  const Tensor latents = run_encoder(frames, pass);
  state = std::move(next);
  return latents;
}

Tensor TinyVae::decode(const Tensor& latents) const {
  TimePass pass = TimePass::clip(true);
  return run_decoder(latents, pass);
}

Tensor TinyVae::decode(const Tensor& latents, VideoState& state) const {
  const NoGrad off;
  VideoState next = state;
  TimePass pass = TimePass::stream(next);
  const Tensor frames = run_decoder(latents, pass);
  state = std::move(next);
  return frames;
}

}  // namespace rivulet
