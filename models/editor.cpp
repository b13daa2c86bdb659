#include "models/editor.h"

#include <chrono>
#include <cmath>

#include "models/sana_streaming/stream_file.h"
#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/reduce.h"

namespace rivulet {
namespace {

int64_t read_count(const SafeTensors& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  check(it != file.metadata().end(), file.path(), ": not an edit state, '", key, "' is absent");
  try {
    size_t used = 0;
    const long long n = std::stoll(it->second, &used);
    check(used == it->second.size(), file.path(), ": bad ", key, " '", it->second, "'");
    return n;
  } catch (const std::logic_error&) {
    fail(file.path(), ": bad ", key, " '", it->second, "'");
  }
}

// Seconds since the last lap.
class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// What step() relies on: every tensor of the state has the shape that this model makes for these frames.
void check_fits(const StreamState& s, const DitConfig& c, int64_t tokens) {
  if (s.chunk == 0) return;
  const int64_t D = c.width / c.heads;
  check(int64_t(s.blocks.size()) == c.depth, "edit state: has ", s.blocks.size(), " blocks, the model ",
        c.depth);
  for (size_t i = 0; i < s.blocks.size(); ++i) {
    const BlockState& b = s.blocks[i];
    const auto need = [&](const Tensor& t, const Shape& shape, const char* what) {
      check(t.defined() && t.dtype() == DType::f32 && t.shape() == shape, "edit state: ", what, " of block ",
            i, " has shape ", t.defined() ? t.shape() : Shape{}, ", this model and frame size need ", shape);
    };
    need(b.conv_tail, {1, tokens, c.width}, "the temporal frame");
    if (!c.is_softmax(int64_t(i))) {
      need(b.gdn.kv, {1, c.heads, D, D}, "the recurrent state");
      need(b.gdn.z, {1, c.heads, D}, "the normaliser");
    }
    for (const auto& [chunk, kv] : b.window) {
      const int64_t n = kv.k.defined() && kv.k.dims() == 4 ? kv.k.dim(1) : 0;
      check(n > 0 && n % tokens == 0, "edit state: the keys of block ", i, " do not fit this frame size");
      need(kv.k, {1, n, c.heads, D}, "the keys");
      need(kv.v, {1, n, c.heads, D}, "the values");
    }
  }
}

void check_finite(const Tensor& latents, const std::string& where) {
  if (!std::isfinite(sum(abs(latents), {0, 1, 2, 3, 4}).item()))
    throw NotFinite("edit: the network gave values that are not finite in " + where);
}

}  // namespace

void save_state(const EditState& state, const std::string& path) {
  std::map<std::string, Tensor> tensors;
  put_stream(state.stream, "", tensors);
  save_safetensors(path, tensors,
                   {{"kind", "rivulet edit state"},
                    {"chunk", std::to_string(state.stream.chunk)},
                    {"frames", std::to_string(state.stream.frames)},
                    {"blocks", std::to_string(state.stream.blocks.size())},
                    {"seed", std::to_string(int64_t(state.noise.seed))},
                    {"drawn", std::to_string(int64_t(state.noise.offset))}});
}

EditState load_state(const std::string& path) {
  const SafeTensors file(path);
  EditState state;
  const int64_t chunk = read_count(file, "chunk"), frames = read_count(file, "frames");
  state.noise.seed = uint64_t(read_count(file, "seed"));
  state.noise.offset = uint64_t(read_count(file, "drawn"));
  state.stream = get_stream(file, "", chunk, frames, read_count(file, "blocks"));
  return state;
}

Tensor Editor::step(const Tensor& frames, const Prompt& prompt, EditState& state,
                    const SampleOptions& options) const {
  check(frames.dtype() == DType::u8 && frames.dims() == 4 && frames.dim(0) == next_chunk_frames(state),
        "edit: frames of ", frames.dtype(), " ", frames.shape(), ", the next chunk takes u8 [",
        next_chunk_frames(state), ", H, W, 3]");
  return decode_frames(denoise(encode_frames(frames), prompt, state, options).latents);
}

Tensor Editor::encode_frames(const Tensor& frames) const {
  const NoGrad off;
  // Dense, since every step reads it several times.
  return model_.codec().encode(frames).to(model_.device()).contiguous();
}

Denoised Editor::denoise(const Tensor& latents, const Prompt& prompt, EditState& state,
                         const SampleOptions& options) const {
  const NoGrad off;
  const Device device = model_.device();
  check_fits(state.stream, model_.config().dit, latents.dim(3) * latents.dim(4));
  Denoised out;
  Stopwatch watch;
  const SourceLatents source = model_.source(latents);
  const Tensor noise = randn(latents.shape(), state.noise, DType::f32, device);
  const auto velocity = [&](const Tensor& x, double t, double sigma) {
    const Tensor v = model_.velocity(x, source, full({1}, sigma, DType::f32, device),
                                     full({1}, t, DType::f32, device), prompt.context, &state.stream);
    out.pass_seconds.push_back(watch.lap());
    return v;
  };
  out.latents = sample(velocity, noise, options, state.noise);
  // Anything not finite would stay in the memory and blacken the rest of the stream.
  check_finite(out.latents, "chunk " + std::to_string(state.stream.chunk));
  state.stream = model_.remember(out.latents, latents, prompt.context, state.stream);
  out.pass_seconds.push_back(watch.lap());
  return out;
}

Tensor Editor::edit_clip(const Tensor& frames, const Prompt& prompt, Rng& noise,
                         const ClipSampling& sampling) const {
  const EditModelConfig& c = model_.config();
  check(c.dit.variant == "bidirectional", "edit: '", c.name,
        "' edits streams, a whole clip at once needs a bidirectional model");
  check(frames.dtype() == DType::u8 && frames.dims() == 4 && frames.numel() > 0, "edit: frames of ",
        frames.dtype(), " ", frames.shape(), ", wanted u8 [F, H, W, 3]");
  const NoGrad off;
  const Device device = model_.device();
  const SourceLatents source = model_.source(encode_frames(frames));
  const TextContext null = sampling.guidance == 1 ? TextContext{} : model_.encode({""});
  const auto with = [&](const TextContext& text) -> Velocity {
    return [&](const Tensor& x, double t, double sigma) {
      return model_.velocity(x, source, full({1}, sigma, DType::f32, device),
                             full({1}, t, DType::f32, device), text);
    };
  };
  const Tensor start = randn(source.latents.shape(), noise, DType::f32, device);
  const Tensor latents = sample_dpm(guided(with(prompt.context), with(null), sampling.guidance), start,
                                    clip_levels(sampling.steps, sampling.shift));
  check_finite(latents, "the clip");
  return decode_frames(latents);
}

Tensor Editor::decode_frames(const Tensor& latents) const {
  const NoGrad off;
  return unit_to_u8(model_.codec().decode(latents.to(Device::cpu)));
}

}  // namespace rivulet
