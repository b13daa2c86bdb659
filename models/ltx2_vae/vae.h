// A convolutional video autoencoder with the blocks and tensor names of LTX-2's (vae_text.md 1 to 3). The
// encoder is causal; the decoder runs causally or with frames on both sides, with the same weights.
//
// Frames are f32 [B, T, H, W, 3] in [-1, 1]; latents [B, C, T, H / spatial, W / spatial], normalised per
// channel as the transformer wants them. A stream may be cut anywhere: the pieces give what the whole clip
// gives.
#pragma once

#include "models/ltx2_vae/config.h"
#include "nn/video_blocks.h"

namespace rivulet {

struct VideoEncoder {
  struct Block {
    std::vector<ResBlock> resnets;
    std::vector<Downsampler> downsamplers;
    template <class F>
    void visit(F&& f) {
      f("resnets", resnets);
      f("downsamplers", downsamplers);
    }
  };
  CausalConv3d conv_in, conv_out;
  std::vector<Block> down_blocks;
  Block mid_block;

  VideoEncoder(const VideoVaeConfig& config, Device device);
  template <class F>
  void visit(F&& f) {
    f("conv_in", conv_in);
    f("down_blocks", down_blocks);
    f("mid_block", mid_block);
    f("conv_out", conv_out);
  }
  // Patches [B, T, h, w, 3 p^2] to [B, T', h', w', C + 1]: means, and one log-variance for all channels.
  // Undefined when a stream has too few frames for a latent yet.
  Tensor operator()(const Tensor& patches, TimePass& pass) const;
};

struct VideoDecoder {
  struct Block {
    std::vector<Upsampler> upsamplers;
    std::vector<ResBlock> resnets;
    template <class F>
    void visit(F&& f) {
      f("upsamplers", upsamplers);
      f("resnets", resnets);
    }
  };
  CausalConv3d conv_in, conv_out;
  Block mid_block;
  std::vector<Block> up_blocks;

  VideoDecoder(const VideoVaeConfig& config, Device device);
  template <class F>
  void visit(F&& f) {
    f("conv_in", conv_in);
    f("mid_block", mid_block);
    f("up_blocks", up_blocks);
    f("conv_out", conv_out);
  }
  // [B, T, h, w, C] to patches. `features` receives what the mid block and every up block give.
  Tensor operator()(const Tensor& latents, TimePass& pass, Tensors* features = nullptr) const;
};

class VideoVae {
 public:
  // Unspecified weights (Device::meta: none at all); latents are not scaled until statistics are loaded.
  explicit VideoVae(const VideoVaeConfig& config, Device device = Device::cpu);
  // Training start: unit gain through every convolution, residual branches near zero.
  void initialise(Rng& rng);
  // A released folder: config.json and diffusion_pytorch_model.safetensors.
  static VideoVae load_ltx2(const std::string& dir, Device device = Device::cpu);

  template <class F>
  void visit(F&& f) {
    f("encoder", encoder);
    f("decoder", decoder);
    f("latents_mean", latents_mean);
    f("latents_std", latents_std);
  }
  const VideoVaeConfig& config() const { return config_; }
  Device device() const { return latents_mean.device(); }

  // Means and log-variance before normalisation, [B, T', h', w', C + 1], of a whole clip.
  Tensor moments(const Tensor& frames) const;
  // Whole clips of 1 + k temporal() frames.
  Tensor encode(const Tensor& frames) const;
  // The next frames of a stream, any number of them; undefined when they complete no latent.
  Tensor encode(const Tensor& frames, VideoState& state) const;

  // Whole clips. The config's decoder_causal stands above `causal`.
  Tensor decode(const Tensor& latents, bool causal) const;
  // The next latents of a stream, causally.
  Tensor decode(const Tensor& latents, VideoState& state) const;
  // As the first, and what the middle of the decoder and each of its up blocks give, for distillation.
  Tensor decode(const Tensor& latents, bool causal, Tensors& features) const;

  Tensor normalised(const Tensor& means) const;      // [B, T, h, w, C] to latents
  Tensor unnormalised(const Tensor& latents) const;  // and back
  Tensor patchify(const Tensor& frames) const;       // [B, T, H, W, 3] to [B, T, H/p, W/p, 3 p^2]
  Tensor unpatchify(const Tensor& patches) const;

  VideoEncoder encoder;
  VideoDecoder decoder;
  Tensor latents_mean, latents_std;  // [C]
  std::optional<DType> compute;      // of activations inside; otherwise that of the frames or latents given

 private:
  Tensor inside(const Tensor& x) const { return compute ? x.to(*compute) : x; }

  VideoVaeConfig config_;
};

// Makes a causal decoder of one whose convolutions look to both sides (training.md 5): the taps (a, b, c) on
// the frames before, now and after become (0, a, b + c) on the two frames before and now. Frames that do not
// change in time are decoded as before; what moves loses quality until it is trained again.
void remap_to_causal(VideoDecoder& decoder);

// The decoding of the public release (vae_text.md 3.4): every run of `tile` latents is decoded by itself,
// with frames on both sides, and the runs are blended over `blend` frames. For comparison: it costs about
// `tile` times as much and looks tile - 1 latents ahead.
Tensor decode_tiles(const VideoVae& vae, const Tensor& latents, int64_t tile = 4, int64_t blend = 16);

}  // namespace rivulet
