#include "models/ltx2_vae/vae_stream.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "ops/elementwise.h"
#include "ops/frame_moves.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

constexpr int64_t kCarried = 2;  // frames before the first that a kernel of 3 reads

int64_t rim_of(Border border) { return border == Border::zeros ? 0 : 1; }

// Height, width of what a sampler gives, and frames of T, of which a stream's first is special.
std::array<int64_t, 2> next_size(const PackedHalf& half, const BlockSize& stride, int64_t h, int64_t w) {
  return half.down ? std::array{h / stride[1], w / stride[2]} : std::array{h * stride[1], w * stride[2]};
}

}  // namespace

int16_t VaeStream::Pool::take() {
  for (size_t i = 0; i < uses.size(); ++i)
    if (uses[i] == 0) {
      uses[i] = 1;
      return int16_t(i);
    }
  fail("vae stream: no place is free for a frame of ", height, "x", width, "x", channels);
}

VaeStream::Half VaeStream::make_half(const PackedHalf& packed, int64_t h, int64_t w) const {
  Half half;
  half.packed = &packed;
  half.rim = rim_of(packed.border);
  const auto reader = [&](size_t pool) {
    half.memories.push_back({pool, {}});
    ++half.pools[pool].readers;
  };
  half.pools.push_back({h, w, packed.conv_in.w.dim(4), 0, {}, {}});
  reader(0);
  for (const PackedStage& s : packed.stages) {
    half.pools.push_back({h, w, s.width, 0, {}, {}});
    const size_t pool = half.pools.size() - 1;
    // Its own, and the sampler's or the last convolution's.
    for (size_t i = 0; i < s.convs.size() + 1; ++i) reader(pool);
    if (s.sampler) {
      const auto size = next_size(packed, s.stride, h, w);
      h = size[0], w = size[1];
    }
  }
  for (Pool& p : half.pools) {
    // Two convolutions' new frames are in the making while the old ones are still read.
    const int64_t places = kCarried * (p.readers + 2);
    p.uses.assign(size_t(places), 0);
    p.store = Tensor({places, p.height + 2 * half.rim, p.width + 2 * half.rim, p.channels}, vae_.dtype(),
                     vae_.device());
  }
  return half;
}

int64_t VaeStream::scratch_needed(const Half& half, int64_t frames) const {
  // The residual stream and the inputs of two convolutions, at the size where that is most.
  int64_t most = 0;
  for (const Pool& p : half.pools) {
    const int64_t frame = (p.height + 2 * half.rim) * (p.width + 2 * half.rim) * p.channels * size_of(vae_.dtype());
    most = std::max(most, frame * std::max<int64_t>(frames, 1));
    if (&p == &half.pools[0]) continue;
    const BlockSize stride = half.packed->stages[size_t(&p - half.pools.data()) - 1].stride;
    frames = half.packed->down ? (frames + stride[0] - 1) / stride[0] : frames * stride[0];
  }
  return most * 33 / 10 + (int64_t(64) << 20);
}

VaeStream::VaeStream(const PackedVae& vae, const Options& options)
    : vae_(vae),
      options_(options),
      arena_(
          [&] {
            const VideoVaeConfig& c = vae.config();
            const int64_t s = c.spatial();
            check(options.height > 0 && options.width > 0 && options.height % s == 0 && options.width % s == 0 &&
                      options.most_latents > 0,
                  "vae stream: frames of ", options.height, "x", options.width, ", must be multiples of ", s,
                  "; ", options.most_latents, " latents at a time");
            int64_t bytes = 1 << 20;
            if (options.encode) {
              encoder_ = make_half(vae.encoder, options.height / c.patch, options.width / c.patch);
              bytes = std::max(bytes, scratch_needed(encoder_, options.most_latents * c.temporal()));
            }
            if (options.decode) {
              decoder_ = make_half(vae.decoder, options.height / s, options.width / s);
              bytes = std::max(bytes, scratch_needed(decoder_, options.most_latents));
            }
            return vae.device() == Device::cuda ? bytes : int64_t(1) << 12;
          }(),
          vae.device(), Arena::Reuse::yes) {
  check(vae.device() == Device::cpu || vae.dtype() == DType::bf16,
        "vae stream: on the GPU the weights must be bf16, not ", vae.dtype());
}

// One call through one half.
class VaeStream::Run {
 public:
  Run(const VaeStream& owner, Half& half) : owner_(owner), half_(half), packed_(*half.packed) {}

  // write() fills the first convolution's input of T frames; output(frames) receives the last one's result.
  template <class Write, class Output>
  void through(int64_t T, Write&& write, Output&& output) {
    Input in = input(T);
    write(in.fresh);
    mark("pixels or latents in");
    FramesConv job;
    job.x = in.all;
    const PackedConv* conv = &packed_.conv_in;
    std::string name = "conv_in";
    for (const PackedStage& s : packed_.stages) {
      // `job` makes the residual stream x of this stage, for which the sampler has left its skip in `x_`.
      if (!x_) x_ = dense(T, in);
      job.raw = Frames(x_);
      Input next = input(T);
      job.normed = next.fresh;
      run(*conv, job, in, name);
      job = {};
      in = std::move(next);
      next = {};
      blocks(s, T, in);
      if (!s.sampler) continue;
      job = sample(s, T, in);
      conv = &s.sampler;
      name = label(s.width, "sampler");
    }
    x_ = {};
    job = {};
    job.x = in.all;
    job.raw = output(T);
    run(packed_.conv_out, job, in, "conv_out");
    half_.started = true;
  }

 private:
  static std::string label(int64_t width, const char* what) { return std::to_string(width) + " " + what; }
  void mark(const std::string& piece) const {
    if (owner_.hook_) owner_.hook_(piece);
  }
  Pool& pool(const Input& in) { return half_.pools[half_.memories[in.memory].pool]; }

  Tensor dense(int64_t T, const Input&) {
    const Pool& p = half_.pools[half_.memories[next_memory_].pool];
    return Tensor({T, p.height, p.width, p.channels}, owner_.vae_.dtype(), owner_.vae_.device());
  }

  // The input of the next convolution: T new frames, of which the last ones go to the pool.
  Input input(int64_t T, int64_t repeated = 0) {
    Input in;
    in.memory = next_memory_++;
    in.repeated = repeated;
    const Memory& memory = half_.memories[in.memory];
    Pool& p = pool(in);
    const int64_t shared = std::max<int64_t>(T - kCarried, 0);
    Frames& f = in.fresh;
    f.rim = half_.rim;
    f.border = packed_.border;
    if (shared > 0)
      f.stores[0] = Tensor({shared, p.height + 2 * f.rim, p.width + 2 * f.rim, p.channels}, owner_.vae_.dtype(),
                           owner_.vae_.device());
    f.stores[1] = p.store;
    for (int64_t t = 0; t < T; ++t) f.at.push_back(t < shared ? int16_t(t) : int16_t(-1 - p.take()));
    in.all = f;
    std::vector<int16_t> before(size_t(kCarried + repeated), f.at[0]);
    for (size_t i = 0; i < memory.carried.size(); ++i) before[i] = int16_t(-1 - memory.carried[i]);
    in.all.at.insert(in.all.at.begin(), before.begin(), before.end());
    return in;
  }

  // Runs `job` on `in`, whose last frames are then the ones carried.
  void run(const PackedConv& conv, FramesConv& job, Input& in, const std::string& name) {
    job.w = conv.w;
    job.bias = conv.bias;
    conv_frames(job);
    Memory& memory = half_.memories[in.memory];
    Pool& p = pool(in);
    std::vector<int16_t> last;
    for (size_t i = in.all.at.size() - kCarried; i < in.all.at.size(); ++i)
      last.push_back(int16_t(-1 - in.all.at[i]));
    for (int16_t place : last) ++p.uses[size_t(place)];
    for (int16_t place : memory.carried) --p.uses[size_t(place)];
    for (int16_t place : in.fresh.at)
      if (place < 0) --p.uses[size_t(-1 - place)];
    memory.carried = last;
    in = {};
    job.x = {};
    mark(name);
  }

  // The residual blocks of a stage; `in` is the first one's input, and becomes that of what follows them.
  void blocks(const PackedStage& s, int64_t T, Input& in) {
    const bool doubles = packed_.down && s.sampler && s.stride[0] == 2 && !half_.started;
    for (size_t i = 0; i < s.convs.size(); i += 2) {
      const bool last = i + 2 == s.convs.size();
      Input middle = input(T);
      FramesConv job;
      job.x = in.all;
      job.normed = middle.fresh;
      run(s.convs[i], job, in, label(s.width, "conv1"));
      job = {};
      Input next = input(T, last && doubles ? 1 : 0);
      job.x = middle.all;
      job.add = x_;
      // A sampler reads the residual stream itself.
      if (!last) job.raw = Frames(x_);
      (last && s.sampler ? job.raw : job.normed) = next.fresh;
      run(s.convs[i + 1], job, middle, label(s.width, "conv2"));
      in = std::move(next);
    }
  }

  // The way past a sampler, into a new x_, and the job of its convolution. T becomes the frames behind it.
  FramesConv sample(const PackedStage& s, int64_t& T, const Input& in) {
    FramesConv job;
    job.x = in.all;
    job.block = s.stride;
    Frames read = in.all;  // without those carried
    read.at.erase(read.at.begin(), read.at.begin() + kCarried);
    x_ = {};
    if (packed_.down) {
      check((T + in.repeated) % s.stride[0] == 0, "vae stream: ", T, " frames before a sampler in time");
      T = (T + in.repeated) / s.stride[0];
      x_ = dense(T, in);
      job.move = FramesConv::Move::to_depth;
      skip_to_depth(read, s.position, s.stride, x_);
    } else {
      job.drop = s.stride[0] == 2 && !half_.started ? 1 : 0;
      T = T * s.stride[0] - job.drop;
      x_ = dense(T, in);
      job.move = FramesConv::Move::to_space;
      skip_to_space(read, s.stride, job.drop, x_);
    }
    job.add = x_;
    mark(label(s.width, "skip"));
    return job;
  }

  const VaeStream& owner_;
  Half& half_;
  const PackedHalf& packed_;
  size_t next_memory_ = 0;
  Tensor x_;  // the residual stream, dense
};

Tensor VaeStream::encode_some(const Tensor& pixels) {
  const VideoVaeConfig& c = vae_.config();
  const int64_t T = pixels.dim(0), latents = encoder_.started ? T / c.temporal() : c.latents_of(T), s = c.spatial();
  const Tensor out({1, c.latent_channels, latents, options_.height / s, options_.width / s}, DType::f32,
                   vae_.device());
  std::optional<ArenaScope> scope;
  arena_.reset();
  if (vae_.device() == Device::cuda) scope.emplace(arena_);
  Tensor means({latents, options_.height / s, options_.width / s, c.latent_channels}, vae_.dtype(), vae_.device());
  Run(*this, encoder_)
      .through(
          T, [&](const Frames& f) { patch_frames(pixels, c.patch, f); },
          [&](int64_t frames) {
            check(frames == latents, "vae stream: ", frames, " latents of ", T, " frames");
            return Frames(means);
          });
  out.copy_from(((means.to(DType::f32) - vae_.latents_mean) / vae_.latents_std).permute({3, 0, 1, 2}).unsqueeze(0));
  if (hook_) hook_("latents out");
  return out;
}

Tensor VaeStream::decode_some(const Tensor& latents, DType dtype) {
  const VideoVaeConfig& c = vae_.config();
  const int64_t T = latents.dim(2), frames = decoder_.started ? T * c.temporal() : c.frames_of(T);
  const Tensor out({frames, options_.height, options_.width, 3}, dtype, vae_.device());
  std::optional<ArenaScope> scope;
  arena_.reset();
  if (vae_.device() == Device::cuda) scope.emplace(arena_);
  Tensor patches;
  Run(*this, decoder_)
      .through(
          T,
          [&](const Frames& f) {
            const Tensor mu = latents.select(0, 0).permute({1, 2, 3, 0}) * vae_.latents_std + vae_.latents_mean;
            copy_frames(Frames(mu.to(vae_.dtype()).contiguous()), f);
          },
          [&](int64_t count) {
            check(count == frames, "vae stream: ", count, " frames of ", T, " latents");
            patches = Tensor({frames, options_.height / c.patch, options_.width / c.patch, 3 * c.patch * c.patch},
                             vae_.dtype(), vae_.device());
            return Frames(patches);
          });
  unpatch_frames(Frames(patches), c.patch, out);
  if (hook_) hook_("pixels out");
  return out;
}

Tensor VaeStream::encode(const Tensor& pixels) {
  const NoGrad off;
  const VideoVaeConfig& c = vae_.config();
  check(options_.encode, "vae stream: made without its encoder");
  check(pixels.dims() == 4 && pixels.dim(1) == options_.height && pixels.dim(2) == options_.width &&
            pixels.dim(3) == 3,
        "vae stream: pixels have shape ", pixels.shape(), ", wanted [T, ", options_.height, ", ", options_.width,
        ", 3]");
  const int64_t T = pixels.dim(0), first = encoder_.started ? 0 : 1, step = options_.most_latents * c.temporal();
  check(T > 0 && (T - first) % c.temporal() == 0, "vae stream: ", T, " frames, must be ",
        first ? "1 and " : "", "a multiple of ", c.temporal());
  Tensors parts;
  for (int64_t t = 0; t < T;) {
    // With the first frame, one latent fewer fits.
    const int64_t n = std::min(T - t, t == 0 && first ? std::max<int64_t>(step - c.temporal(), 0) + 1 : step);
    parts.push_back(encode_some(pixels.slice(0, t, t + n).contiguous()));
    t += n;
  }
  return parts.size() == 1 ? parts[0] : cat(parts, 2);
}

Tensor VaeStream::decode(const Tensor& latents, DType dtype) {
  const NoGrad off;
  const VideoVaeConfig& c = vae_.config();
  const int64_t s = c.spatial();
  check(options_.decode, "vae stream: made without its decoder");
  check(latents.dims() == 5 && latents.dim(0) == 1 && latents.dim(1) == c.latent_channels && latents.dim(2) > 0 &&
            latents.dim(3) * s == options_.height && latents.dim(4) * s == options_.width,
        "vae stream: latents have shape ", latents.shape(), ", wanted [1, ", c.latent_channels, ", T, ",
        options_.height / s, ", ", options_.width / s, "]");
  Tensors parts;
  for (int64_t t = 0; t < latents.dim(2); t += options_.most_latents)
    parts.push_back(
        decode_some(latents.slice(2, t, std::min(latents.dim(2), t + options_.most_latents)), dtype));
  return parts.size() == 1 ? parts[0] : cat(parts, 0);
}

void VaeStream::reset() {
  for (Half* half : {&encoder_, &decoder_}) {
    half->started = false;
    for (Memory& m : half->memories) m.carried.clear();
    for (Pool& p : half->pools) std::fill(p.uses.begin(), p.uses.end(), 0);
  }
}

int64_t VaeStream::state_bytes() const {
  int64_t bytes = 0;
  for (const Half* half : {&encoder_, &decoder_})
    for (const Pool& p : half->pools) bytes += p.store.bytes();
  return bytes;
}

}  // namespace rivulet
