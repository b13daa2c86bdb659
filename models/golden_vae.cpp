#include "models/golden_vae.h"

#include "models/ltx2_vae/vae.h"
#include "models/taeltx2/taeltx2.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

constexpr double kTolerance = 1e-5;

GoldenRow row(const std::string& what, const std::string& name, const Tensor& ours, const Tensor& theirs) {
  return {what, 1, relative_error(ours, theirs), name, kTolerance};
}

// Pieces of `length`, the first of `first`, of dim 1 or 2, each put through f.
template <class F>
Tensor by_pieces(const Tensor& x, int dim, int64_t first, int64_t length, int out_dim, F&& f) {
  Tensors parts;
  for (int64_t at = 0, n = first; at < x.dim(dim); at += n, n = length)
    if (const Tensor y = f(x.slice(dim, at, std::min(at + n, x.dim(dim))))) parts.push_back(y);
  return cat(parts, out_dim);
}

}  // namespace

bool is_ltx2_vae_golden(const SafeTensors& file) {
  return file.contains("weights.encoder.conv_in.conv.weight");
}
bool is_taeltx2_golden(const SafeTensors& file) { return file.contains("weights.decoder.7.conv.weight"); }

std::vector<GoldenRow> run_ltx2_vae_golden(const SafeTensors& file, Device device, DType dtype) {
  const NoGrad off;
  const auto info = file.metadata().find("info");
  check(info != file.metadata().end(), file.path(), ": the header has no 'info'");
  VideoVae vae(ltx2_vae_config(parse_json(info->second, file.path() + ": info"), file.path()), device);
  load_tensors(named_tensors(vae), file, "weights.");
  convert(vae, dtype);
  pack_convs(vae);
  // Pixels are [B, 3, T, H, W] in the file.
  const auto frames_first = [](const Tensor& frames) { return frames.permute({0, 4, 1, 2, 3}); };
  const Tensor video = file.get("in.video").to(device).to(dtype).permute({0, 2, 3, 4, 1}).contiguous();
  const Tensor mode = file.get("enc.mode").to(device).to(dtype);
  // The file's latents are not normalised; the decoder takes normalised ones.
  const int64_t c = vae.config().latent_channels;
  const Tensor z = vae.normalised(mode.permute({0, 2, 3, 4, 1}));
  const auto un = [&](const Tensor& latents) { return vae.unnormalised(latents).permute({0, 4, 1, 2, 3}); };
  VideoState encoding, decoding;
  const Tensor streamed =
      by_pieces(video, 1, 1, 8, 2, [&](const Tensor& x) { return vae.encode(x, encoding); });
  const Tensor decoded = by_pieces(z, 2, 1, 1, 1, [&](const Tensor& x) { return vae.decode(x, decoding); });
  return {row("encode", "enc.mode", vae.moments(video).slice(4, 0, c).permute({0, 4, 1, 2, 3}),
              file.get("enc.mode")),
          row("encode, streamed", "enc.mode", un(streamed), file.get("enc.mode")),
          row("decode, causal", "dec.causal", frames_first(vae.decode(z, true)), file.get("dec.causal")),
          row("decode, streamed", "dec.stream", frames_first(decoded), file.get("dec.stream")),
          row("decode, two-way", "dec.bidir", frames_first(vae.decode(z, false)), file.get("dec.bidir"))};
}

std::vector<GoldenRow> run_taeltx2_golden(const SafeTensors& file, Device device, DType dtype) {
  const NoGrad off;
  TinyVaeConfig config;
  config.encoder_width = file.get("weights.encoder.0.weight").dim(0);
  config.latent_channels = file.get("weights.encoder.17.weight").dim(0);
  for (size_t s = 0; s < 4; ++s)
    config.decoder_widths[s] =
        file.get(s < 3 ? "weights.decoder." + std::to_string(3 + 6 * s) + ".conv.0.weight"
                       : "weights.decoder.20.weight")
            .dim(0);
  TinyVae vae(config, device);
  load_tensors(named_tensors(vae), file, "weights.");
  convert(vae, dtype);
  // Pixels are [B, T, 3, H, W] in the file, latents [B, T, C, H, W].
  const Tensor video = file.get("in.video").to(device).to(dtype).permute({0, 1, 3, 4, 2}).contiguous();
  const Tensor z = file.get("enc").to(device).to(dtype).transpose(1, 2);
  const auto frames_first = [](const Tensor& frames) { return frames.permute({0, 1, 4, 2, 3}); };
  VideoState encoding, decoding;
  const Tensor streamed = by_pieces(with_last_repeated(video, 8), 1, 3, 5, 2,
                                    [&](const Tensor& x) { return vae.encode(x, encoding); });
  const Tensor decoded = by_pieces(z, 2, 1, 1, 1, [&](const Tensor& x) { return vae.decode(x, decoding); });
  return {row("encode", "enc", vae.encode(video).transpose(1, 2), file.get("enc")),
          row("encode, streamed", "enc", streamed.transpose(1, 2), file.get("enc")),
          row("decode", "dec", frames_first(vae.decode(z)), file.get("dec")),
          row("decode, streamed", "dec", frames_first(decoded), file.get("dec"))};
}

}  // namespace rivulet
