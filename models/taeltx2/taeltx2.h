// taeltx_2, the tiny autoencoder of the LTX-2 latent space (vae_text.md 8.1): 2-D convolutions whose blocks
// also see the frame before. Made for normalised latents, 8 frames and 32 x 32 pixels each.
//
// Which frames belong to a latent, as the golden file shows (tests/taeltx2_test.cpp tries every split of the
// padding): the encoder puts nothing in front of a clip and repeats its last frame until the number of frames
// is a multiple of 8, so latent j reads frames up to 8 j + 7. The decoder makes 8 frames of every latent and
// the first 7 of a stream are dropped, so latent j shows in frames 8 j - 7 to 8 j. A clip of 1 + 8 k frames
// comes back with 1 + 8 k frames; a live encoder waits for 7 frames more than LTX-2's own.
#pragma once

#include "nn/causal_conv3d.h"

namespace rivulet {

struct TinyVaeConfig {
  int64_t latent_channels = 128, encoder_width = 64;
  std::vector<int64_t> decoder_widths = {256, 128, 64, 64};  // of the three stages, and after them
};

// A 2-D convolution on every frame by itself.
struct FrameConv {
  Tensor weight, bias;  // [Co, C, k, k], [Co] or undefined

  FrameConv() = default;
  FrameConv(int64_t in, int64_t out, int64_t size, bool with_bias, Device device)
      : weight({out, in, size, size}, DType::f32, device),
        bias(with_bias ? Tensor({out}, DType::f32, device) : Tensor()) {}
  template <class F>
  void visit(F&& f) {
    f("weight", weight);
    f("bias", bias);
  }
  Tensor operator()(const Tensor& x, int64_t stride = 1) const;
};

// relu(x + three convolutions of x and the frame before it).
struct MemBlock {
  FrameConv conv0, conv2, conv4;

  MemBlock() = default;
  MemBlock(int64_t width, Device device);
  template <class F>
  void visit(F&& f) {
    f("conv.0", conv0);
    f("conv.2", conv2);
    f("conv.4", conv4);
  }
  Tensor operator()(const Tensor& x, TimePass& pass) const;
};

class TinyVae {
 public:
  explicit TinyVae(const TinyVaeConfig& config = {}, Device device = Device::cpu);
  const TinyVaeConfig& config() const { return config_; }

  // Released names: "encoder.<i>..." and "decoder.<i>...", i counting the layers of a sequence.
  template <class F>
  void visit(F&& f) {
    f("encoder.0", encoder_in);
    for (int s = 0; s < 3; ++s) {
      const auto name = [s](int i) { return "encoder." + std::to_string(2 + 5 * s + i); };
      f(name(0) + ".conv", pool[s]);
      f(name(1), down[s]);
      for (int i = 0; i < 3; ++i) f(name(2 + i), encoder_blocks[3 * s + i]);
    }
    f("encoder.17", encoder_out);
    f("decoder.1", decoder_in);
    for (int s = 0; s < 3; ++s) {
      const auto name = [s](int i) { return "decoder." + std::to_string(3 + 6 * s + i); };
      for (int i = 0; i < 3; ++i) f(name(i), decoder_blocks[3 * s + i]);
      f(name(4) + ".conv", grow[s]);
      f(name(5), up[s]);
    }
    f("decoder.22", decoder_out);
  }

  // Frames [B, T, H, W, 3] in [0, 1], H and W multiples of 32; latents [B, C, T / 8, H / 32, W / 32].
  // A whole clip of any length; its last frame is repeated up to a multiple of 8.
  Tensor encode(const Tensor& frames) const;
  // The next frames of a stream, any number; undefined when they complete no latent. Repeat the last frame at
  // the end of the stream (with_last_repeated does it for a whole clip).
  Tensor encode(const Tensor& frames, VideoState& state) const;
  // T latents to 8 T - 7 frames; in a stream, later calls give 8 for each latent.
  Tensor decode(const Tensor& latents) const;
  Tensor decode(const Tensor& latents, VideoState& state) const;

 private:
  Tensor run_encoder(const Tensor& frames, TimePass& pass) const;
  Tensor run_decoder(const Tensor& latents, TimePass& pass) const;

  TinyVaeConfig config_;
  FrameConv encoder_in, encoder_out, decoder_in, decoder_out, pool[3], down[3], grow[3], up[3];
  std::vector<MemBlock> encoder_blocks, decoder_blocks;
};

// Copies of the last frame behind x [B, T, ...], until T is a multiple of `multiple`.
Tensor with_last_repeated(const Tensor& x, int64_t multiple);

}  // namespace rivulet
