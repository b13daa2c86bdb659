// rivulet vae: a clip through a video autoencoder and back, and what that costs.
#include <chrono>
#include <cstdio>
#include <functional>
#include <iostream>

#include "apps/commands.h"
#include "apps/contact_sheet.h"
#include "apps/video.h"
#include "models/creek_vae/creek_vae.h"
#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/image_io.h"
#include "ops/shape.h"
#include "train/metrics.h"

namespace rivulet {
namespace {

using Clock = std::chrono::steady_clock;

// A released LTX-2 folder or one of ours; its config tells.
VideoVae open_vae(const std::string& dir, Device device) {
  const Json config = read_json(dir + "/config.json");
  if (config.contains("decoder_block_out_channels")) return VideoVae::load_ltx2(dir, device);
  return CreekVae::load(dir, device).vae;
}

struct Measured {
  int64_t frames = 0, latents = 0;
  double encode_seconds = 0, decode_seconds = 0, squares = 0, ssim = 0;

  void compare(const Tensor& source, const Tensor& output) {
    const Tensor a = u8_to_unit(source), b = u8_to_unit(output);
    const double e = rmse(a, b), n = double(source.dim(0));
    squares += e * e * n;
    ssim += rivulet::ssim(a, b) * n;
    frames += source.dim(0);
  }
  double psnr() const { return 10 * std::log10(double(frames) / squares); }
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

enum class Decoding { stream, at_once, tiles };

// Latents come back as frames piece by piece, or all at the end of the clip.
class Codec {
 public:
  Codec(const VideoVae& vae, Decoding how, Measured& measured) : vae_(vae), how_(how), measured_(measured) {}

  // u8 [F, H, W, 3] in; the frames that come out by now, u8, undefined when there are none yet.
  Tensor push(const Tensor& frames) {
    const auto start = Clock::now();
    const Tensor input = (u8_to_unit(frames) * 2.0 - 1.0).unsqueeze(0).to(vae_.device());
    Tensor z = vae_.encode(input, encoding_);
    if (z) z = z.to(Device::cpu);  // waits for the device
    measured_.encode_seconds += seconds_since(start);
    if (!z) return {};
    measured_.latents += z.numel();
    if (how_ == Decoding::stream) return decoded([&] { return vae_.decode(z.to(vae_.device()), decoding_); });
    waiting_.push_back(z);
    return {};
  }
  // What is left at the end of the clip.
  Tensor finish() {
    if (waiting_.empty()) return {};
    return decoded([&] {
      const Tensor z = cat(waiting_, 2).to(vae_.device());
      return how_ == Decoding::tiles ? decode_tiles(vae_, z) : vae_.decode(z, false);
    });
  }

 private:
  Tensor decoded(const std::function<Tensor()>& decode) {
    const auto start = Clock::now();
    const Tensor output = unit_to_u8((decode().select(0, 0).to(Device::cpu) * 0.5 + 0.5).contiguous());
    measured_.decode_seconds += seconds_since(start);
    return output;
  }

  const VideoVae& vae_;
  Decoding how_;
  Measured& measured_;
  VideoState encoding_, decoding_;
  Tensors waiting_;
};

}  // namespace

int run_vae(const VaeOptions& options) {
  const NoGrad off;
  VideoVae vae = open_vae(options.model, device_named(options.device));
  if (options.remap) remap_to_causal(vae.decoder);
  const bool causal = options.remap || vae.config().decoder_causal;
  check(!(causal && options.tiles), options.model, ": its decoder is causal and needs no tiles");
  const Decoding how = causal ? Decoding::stream : options.tiles ? Decoding::tiles : Decoding::at_once;
  SourceOptions wanted{.size = {}, .image_rate = {}};
  if (!options.size.empty()) wanted.size = parse_size(options.size);
  const auto source = open_source(options.in, wanted);
  const FrameSize size = nearest_multiple(source->info().size, vae.config().spatial());
  VideoInfo info = source->info();
  info.size = size;
  info.audio = "";
  const auto sink = open_sink(options.out, info);
  SheetSampler sheet({"source", "decoded"});
  Measured measured;
  Codec codec(vae, how, measured);
  const int64_t step = vae.config().temporal();
  Tensor sources;  // frames whose decoded ones have not come out
  const auto take = [&](Tensor output) {
    if (!output || !sources) return;
    const int64_t n = std::min(output.dim(0), sources.dim(0));  // a last latent may hold more than the clip
    const Tensor in = sources.slice(0, 0, n).contiguous(), out = output.slice(0, 0, n).contiguous();
    sources = n < sources.dim(0) ? sources.slice(0, n, sources.dim(0)).contiguous() : Tensor();
    measured.compare(in, out);
    sheet.add({in, out});
    sink->write(out);
  };
  int64_t read = 0;
  while (options.frames == 0 || read < options.frames) {
    const int64_t room = options.frames == 0 ? 2 * step : options.frames - read;
    Tensor frames = source->read(read == 0 ? 1 : std::min(2 * step, room));
    if (!frames) break;
    if (!(size_of_frames(frames) == size)) frames = fit_frames(frames, size);
    read += frames.dim(0);
    sources = sources ? cat({sources, frames}, 0) : frames;
    take(codec.push(frames));
  }
  check(read > 0, options.in, ": holds no frames");
  // The last latent may miss frames: the last frame stands in.
  const int64_t missing = (step - (read - 1) % step) % step;
  if (missing > 0) {
    const Tensor last = sources.slice(0, sources.dim(0) - 1, sources.dim(0));
    Shape shape = last.shape();
    shape[0] = missing;
    take(codec.push(last.expand(shape).contiguous()));
  }
  take(codec.finish());
  const std::string left_out = sink->finish();
  if (!left_out.empty()) std::cerr << "rivulet: " << left_out << "\n";
  if (!options.sheet.empty()) write_png(options.sheet, sheet.sheet(info.fps.value()));

  const double n = double(measured.frames), values = n * double(size.width * size.height * 3);
  std::printf("frames       %lld of %lldx%lld, decoded %s\n", static_cast<long long>(measured.frames),
              static_cast<long long>(size.width), static_cast<long long>(size.height),
              how == Decoding::stream  ? "as a stream"
              : how == Decoding::tiles ? "in blended tiles"
                                       : "at once");
  std::printf("PSNR         %.2f dB\nSSIM         %.4f\n", measured.psnr(), measured.ssim / n);
  std::printf("FPS          %.2f encode, %.2f decode, %.2f both\n", n / measured.encode_seconds,
              n / measured.decode_seconds, n / (measured.encode_seconds + measured.decode_seconds));
  std::printf("compression  %.1f : 1 in numbers\n", values / double(measured.latents));
  return 0;
}

}  // namespace rivulet
