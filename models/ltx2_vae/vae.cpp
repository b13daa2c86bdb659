#include "models/ltx2_vae/vae.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/pixel_norm.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

std::vector<ResBlock> res_blocks(int64_t count, int64_t width, Border border, Device device) {
  std::vector<ResBlock> blocks;
  for (int64_t i = 0; i < count; ++i) blocks.emplace_back(width, border, device);
  return blocks;
}

Tensor through(const std::vector<ResBlock>& blocks, Tensor h, TimePass& pass) {
  for (const ResBlock& block : blocks) h = block(h, pass);
  return h;
}

int64_t patch_channels(const VideoVaeConfig& c) { return 3 * c.patch * c.patch; }

int64_t last_width(const std::vector<VideoVaeConfig::Stage>& stages, int64_t first) {
  return stages.empty() ? first : stages.back().width;
}

}  // namespace

VideoEncoder::VideoEncoder(const VideoVaeConfig& c, Device device)
    : conv_in(patch_channels(c), c.encoder_width, c.encoder_border, device),
      conv_out(last_width(c.encoder, c.encoder_width), c.latent_channels + 1, c.encoder_border, device) {
  int64_t width = c.encoder_width;
  for (const auto& stage : c.encoder) {
    Block block{res_blocks(stage.layers, width, c.encoder_border, device), {}};
    block.downsamplers.emplace_back(width, stage.width, stage.stride, c.encoder_border, device);
    down_blocks.push_back(std::move(block));
    width = stage.width;
  }
  mid_block.resnets = res_blocks(c.encoder_mid_layers, width, c.encoder_border, device);
}

Tensor VideoEncoder::operator()(const Tensor& patches, TimePass& pass) const {
  Tensor h = conv_in(patches, pass);
  for (const Block& block : down_blocks) {
    h = block.downsamplers[0](through(block.resnets, h, pass), pass);
    if (!h) return h;
  }
  return conv_out(pixel_norm_silu(through(mid_block.resnets, h, pass)), pass);
}

VideoDecoder::VideoDecoder(const VideoVaeConfig& c, Device device)
    : conv_in(c.latent_channels, c.decoder_width, c.decoder_border, device),
      conv_out(last_width(c.decoder, c.decoder_width), patch_channels(c), c.decoder_border, device) {
  int64_t width = c.decoder_width;
  mid_block.resnets = res_blocks(c.decoder_mid_layers, width, c.decoder_border, device);
  for (const auto& stage : c.decoder) {
    Block block;
    block.upsamplers.emplace_back(width, stage.width, stage.stride, c.decoder_border, device);
    block.resnets = res_blocks(stage.layers, stage.width, c.decoder_border, device);
    up_blocks.push_back(std::move(block));
    width = stage.width;
  }
}

Tensor VideoDecoder::operator()(const Tensor& latents, TimePass& pass, Tensors* features) const {
  Tensor h = through(mid_block.resnets, conv_in(latents, pass), pass);
  if (features) features->push_back(h);
  for (const Block& block : up_blocks) {
    h = through(block.resnets, block.upsamplers[0](h, pass), pass);
    if (features) features->push_back(h);
  }
  return conv_out(pixel_norm_silu(h), pass);
}

VideoVae::VideoVae(const VideoVaeConfig& c, Device device)
    : encoder(c, device),
      decoder(c, device),
      latents_mean({c.latent_channels}, DType::f32, device),
      latents_std({c.latent_channels}, DType::f32, device),
      config_(c) {
  int64_t spatial = c.patch, temporal = 1;
  for (const auto& stage : c.decoder) {
    spatial *= stage.stride[1];
    temporal *= stage.stride[0];
  }
  check(spatial == c.spatial() && temporal == c.temporal(), "video vae: encoder ", c.spatial(), "x",
        c.temporal(), ", decoder ", spatial, "x", temporal, " in space and time");
  if (device == Device::meta) return;
  latents_mean.fill(0);
  latents_std.fill(1);
}

void VideoVae::initialise(Rng& rng) {
  const NoGrad off;
  for_each_tensor(*this, [&](const std::string& name, Tensor& t) {
    if (t.dims() != 5) {
      t.fill(name == "latents_std" ? 1 : 0);
      return;
    }
    const bool branch_end = name.find("conv2.conv.weight") != std::string::npos,
               sampler = name.find("samplers.") != std::string::npos;
    const double gain = branch_end ? 0.1 : sampler ? 0.5 : 1, fan_in = double(t.numel() / t.dim(0));
    t.copy_from(randn(t.shape(), rng, DType::f32, t.device()) * (gain / std::sqrt(fan_in)));
  });
}

VideoVae VideoVae::load_ltx2(const std::string& dir, Device device) {
  const std::string path = dir + "/config.json";
  VideoVae vae(ltx2_vae_config(read_json(path), path), device);
  const SafeTensors file(dir + "/diffusion_pytorch_model.safetensors");
  for (const auto& [name, t] : file.tensors())
    for (const char* unknown : {"time_embedder", "scale_shift_table", "per_channel_scale"})
      check(name.find(unknown) == std::string::npos, file.path(), ": ", name,
            " belongs to a variant not built here");
  load_tensors(named_tensors(vae), file);
  pack_convs(vae);
  return vae;
}

// Channel (c p + dw) p + dh: the column is the slower of the two.
Tensor VideoVae::patchify(const Tensor& frames) const {
  const int64_t p = config_.patch, s = config_.spatial();
  check(frames.dims() == 5 && frames.dim(4) == 3 && frames.dim(2) % s == 0 && frames.dim(3) % s == 0 &&
            frames.numel() > 0,
        "video vae: frames have shape ", frames.shape(),
        ", wanted [B, T, H, W, 3] with H and W multiples of ", s);
  const int64_t B = frames.dim(0), T = frames.dim(1), h = frames.dim(2) / p, w = frames.dim(3) / p;
  return frames.reshape({B, T, h, p, w, p, 3})
      .permute({0, 1, 2, 4, 6, 5, 3})
      .reshape({B, T, h, w, 3 * p * p});
}

Tensor VideoVae::unpatchify(const Tensor& patches) const {
  const int64_t p = config_.patch, B = patches.dim(0), T = patches.dim(1), h = patches.dim(2),
                w = patches.dim(3);
  return patches.reshape({B, T, h, w, 3, p, p})
      .permute({0, 1, 2, 6, 3, 5, 4})
      .reshape({B, T, h * p, w * p, 3});
}

Tensor VideoVae::normalised(const Tensor& means) const {
  return ((means - latents_mean) / latents_std).permute({0, 4, 1, 2, 3});
}

Tensor VideoVae::unnormalised(const Tensor& latents) const {
  check(latents.dims() == 5 && latents.dim(1) == config_.latent_channels && latents.numel() > 0,
        "video vae: latents have shape ", latents.shape(), ", wanted [B, ", config_.latent_channels,
        ", T, H, W]");
  return latents.permute({0, 2, 3, 4, 1}) * latents_std + latents_mean;
}

Tensor VideoVae::moments(const Tensor& frames) const {
  const int64_t T = frames.dim(1);
  check((T - 1) % config_.temporal() == 0, "video vae: a clip of ", T, " frames, must be 1 + a multiple of ",
        config_.temporal());
  TimePass pass = TimePass::clip(true);
  return encoder(inside(patchify(frames)), pass).to(frames.dtype());
}

Tensor VideoVae::encode(const Tensor& frames) const {
  return normalised(moments(frames).slice(4, 0, config_.latent_channels));
}

Tensor VideoVae::encode(const Tensor& frames, VideoState& state) const {
  const NoGrad off;
  VideoState next = state;
  TimePass pass = TimePass::stream(next);
  const Tensor h = encoder(inside(patchify(frames)), pass);
  state = std::move(next);  // only now, so that a failed call leaves the stream as it was
  return h ? normalised(h.to(frames.dtype()).slice(4, 0, config_.latent_channels)) : h;
}

Tensor VideoVae::decode(const Tensor& latents, bool causal) const {
  TimePass pass = TimePass::clip(causal || config_.decoder_causal);
  return unpatchify(decoder(inside(unnormalised(latents)), pass).to(latents.dtype()));
}

Tensor VideoVae::decode(const Tensor& latents, bool causal, Tensors& features) const {
  TimePass pass = TimePass::clip(causal || config_.decoder_causal);
  return unpatchify(decoder(inside(unnormalised(latents)), pass, &features).to(latents.dtype()));
}

Tensor VideoVae::decode(const Tensor& latents, VideoState& state) const {
  const NoGrad off;
  VideoState next = state;
  TimePass pass = TimePass::stream(next);
  const Tensor patches = decoder(inside(unnormalised(latents)), pass).to(latents.dtype());
  state = std::move(next);
  return unpatchify(patches);
}

void remap_to_causal(VideoDecoder& decoder) {
  const NoGrad off;
  for_each_tensor(decoder, [](const std::string&, Tensor& t) {
    if (t.dims() != 5) return;
    check(t.dim(2) == 3, "remap_to_causal: a kernel of ", t.dim(2), " frames, must be 3");
    const auto tap = [&](int64_t k) { return t.detach().slice(2, k, k + 1); };
    tap(2).add_in_place(tap(1));
    tap(1).copy_from(tap(0).clone());
    tap(0).fill(0);
  });
}

Tensor decode_tiles(const VideoVae& vae, const Tensor& latents, int64_t tile, int64_t blend) {
  check(tile >= 2 && blend >= 0, "decode_tiles: tiles of ", tile, " latents, ", blend, " frames blended");
  const NoGrad off;
  const int64_t n = latents.dim(2), step = vae.config().temporal();
  Tensor before;
  Tensors out;
  for (int64_t i = 0; i < n; ++i) {
    Tensor run = vae.decode(latents.slice(2, i, std::min(i + tile, n)), false);
    if (i > 0) {
      // A lone last latent gives one frame, which is the one left out.
      if (run.dim(1) == 1) break;
      run = run.slice(1, 1, run.dim(1)).clone();
      const int64_t extent = std::min({before.dim(1), run.dim(1), blend});
      for (int64_t x = 0; x < extent; ++x) {
        const double share = double(x) / double(extent);
        const int64_t at = before.dim(1) - extent + x;
        const Tensor frame = run.slice(1, x, x + 1);
        frame.copy_from(before.slice(1, at, at + 1) * (1 - share) + frame * share);
      }
    }
    before = run;
    out.push_back(run.slice(1, 0, std::min(run.dim(1), i == 0 ? step + 1 : step)));
  }
  const Tensor all = cat(out, 1);
  return all.slice(1, 0, vae.config().frames_of(n));
}

}  // namespace rivulet
