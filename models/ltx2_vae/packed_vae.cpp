#include "models/ltx2_vae/packed_vae.h"

#include <cmath>
#include <numeric>

#include "ops/elementwise.h"
#include "ops/embedding.h"

namespace rivulet {
namespace {

using Order = std::vector<int64_t>;  // the channel at each place

int64_t cells_of(const BlockSize& b) { return b[0] * b[1] * b[2]; }

Order plain(int64_t n) {
  Order order(size_t(n), 0);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// Of what space_to_depth gives: cells are the slower part of the place, channels of the name.
Order cells_first(int64_t channels, int64_t cells) {
  Order order;
  for (int64_t cell = 0; cell < cells; ++cell)
    for (int64_t c = 0; c < channels; ++c) order.push_back(c * cells + cell);
  return order;
}

Tensor ids(const Order& order, Device device) {
  return Tensor::of({order.begin(), order.end()}, {int64_t(order.size())}, DType::i64).to(device);
}

// The first rows of `from` in that order.
Tensor rows(const Tensor& from, const Order& order) {
  const Shape shape = from.shape();
  const Tensor flat = from.reshape({shape[0], -1});
  Shape out = shape;
  out[0] = int64_t(order.size());
  return embedding(ids(order, from.device()), flat).reshape(out);
}

void copy(const CausalConv3d& from, const Order& in, const Order& out, const PackedConv& to) {
  const Tensor w = rows(rows(from.weight.detach(), out).transpose(0, 1), in);  // [C, N, kt, kh, kw]
  to.w.copy_from(w.permute({1, 2, 3, 4, 0}).to(to.w.device()));
  to.bias.copy_from(rows(from.bias.detach(), out).to(to.bias.device()));
}

PackedStage stage(int64_t width, int64_t layers) {
  check(layers > 0, "packed vae: a stage of ", width, " channels without residual blocks");
  PackedStage s;
  s.width = width;
  s.convs.resize(size_t(2 * layers));
  return s;
}

template <class F>
void each_conv(PackedHalf& half, F&& f) {
  f(half.conv_in, false);
  for (PackedStage& s : half.stages) {
    for (size_t i = 0; i < s.convs.size(); ++i) f(s.convs[i], i % 2 == 1);
    if (s.sampler) f(s.sampler, true);
  }
  f(half.conv_out, false);
}

}  // namespace

PackedVae::PackedVae(const VideoVaeConfig& c, DType dtype, Device device)
    : latents_mean(zeros({c.latent_channels}, DType::f32, device)),
      latents_std(ones({c.latent_channels}, DType::f32, device)),
      config_(c),
      dtype_(dtype) {
  const auto conv = [&](int64_t in, int64_t out) {
    return PackedConv{Tensor({out, 3, 3, 3, in}, dtype, device), Tensor({out}, DType::f32, device)};
  };
  const int64_t patch = 3 * c.patch * c.patch;
  encoder.border = c.encoder_border;
  encoder.down = true;
  int64_t width = c.encoder_width;
  encoder.conv_in = conv(patch, width);
  Order order = plain(width);
  for (const auto& s : c.encoder) {
    encoder.stages.push_back(stage(width, s.layers));
    PackedStage& mine = encoder.stages.back();
    mine.stride = s.stride;
    mine.sampler = conv(width, s.width / cells_of(s.stride));
    std::vector<double> position(order.size());
    for (size_t i = 0; i < order.size(); ++i) position[size_t(order[i])] = double(i);
    mine.position = Tensor::of(position, {width}, DType::i32).to(device);
    order = cells_first(s.width / cells_of(s.stride), cells_of(s.stride));
    width = s.width;
  }
  encoder.stages.push_back(stage(width, c.encoder_mid_layers));
  encoder.conv_out = conv(width, c.latent_channels);

  decoder.border = c.decoder_border;
  width = c.decoder_width;
  decoder.conv_in = conv(c.latent_channels, width);
  decoder.stages.push_back(stage(width, c.decoder_mid_layers));
  for (const auto& s : c.decoder) {
    decoder.stages.back().stride = s.stride;
    decoder.stages.back().sampler = conv(width, s.width * cells_of(s.stride));
    decoder.stages.push_back(stage(s.width, s.layers));
    width = s.width;
  }
  decoder.conv_out = conv(width, patch);
  for (PackedHalf* half : {&encoder, &decoder})
    for (PackedStage& s : half->stages)
      for (PackedConv& each : s.convs) each = conv(s.width, s.width);
}

void PackedVae::copy_from(const VideoVae& vae) {
  const NoGrad off;
  const auto blocks = [](const std::vector<ResBlock>& from, const Order& order, PackedStage& to) {
    for (size_t i = 0; i < from.size(); ++i) {
      copy(from[i].conv1, order, order, to.convs[2 * i]);
      copy(from[i].conv2, order, order, to.convs[2 * i + 1]);
    }
  };
  Order order = plain(config_.encoder_width);
  copy(vae.encoder.conv_in, plain(vae.encoder.conv_in.weight.dim(1)), order, encoder.conv_in);
  for (size_t i = 0; i < config_.encoder.size(); ++i) {
    const auto& from = vae.encoder.down_blocks[i];
    PackedStage& to = encoder.stages[i];
    blocks(from.resnets, order, to);
    const int64_t n = to.sampler.w.dim(0);
    copy(from.downsamplers[0].conv, order, plain(n), to.sampler);
    order = cells_first(n, cells_of(to.stride));
  }
  blocks(vae.encoder.mid_block.resnets, order, encoder.stages.back());
  copy(vae.encoder.conv_out, order, plain(config_.latent_channels), encoder.conv_out);

  order = plain(config_.decoder_width);
  copy(vae.decoder.conv_in, plain(config_.latent_channels), order, decoder.conv_in);
  blocks(vae.decoder.mid_block.resnets, order, decoder.stages[0]);
  for (size_t i = 0; i < config_.decoder.size(); ++i) {
    const auto& from = vae.decoder.up_blocks[i];
    const int64_t cells = cells_of(decoder.stages[i].stride);
    copy(from.upsamplers[0].conv, order, cells_first(config_.decoder[i].width, cells), decoder.stages[i].sampler);
    order = plain(config_.decoder[i].width);
    blocks(from.resnets, order, decoder.stages[i + 1]);
  }
  copy(vae.decoder.conv_out, order, plain(decoder.conv_out.w.dim(0)), decoder.conv_out);
  latents_mean.copy_from(vae.latents_mean.to(device()));
  latents_std.copy_from(vae.latents_std.to(device()));
}

void PackedVae::fill_random(Rng& rng) {
  for (PackedHalf* half : {&encoder, &decoder})
    each_conv(*half, [&](PackedConv& c, bool branch) {
      const double fan_in = double(c.w.numel() / c.w.dim(0));
      c.w.copy_from(randn(c.w.shape(), rng, dtype_, device()) * ((branch ? 0.3 : 1) / std::sqrt(fan_in)));
      c.bias.copy_from(randn(c.bias.shape(), rng, DType::f32, device()) * 0.02);
    });
}

int64_t PackedVae::weight_bytes() const {
  int64_t bytes = 0;
  for (const PackedHalf* half : {&encoder, &decoder})
    each_conv(const_cast<PackedHalf&>(*half), [&](PackedConv& c, bool) { bytes += c.w.bytes() + c.bias.bytes(); });
  return bytes;
}

}  // namespace rivulet
