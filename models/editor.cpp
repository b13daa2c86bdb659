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

// Layers of an autoencoder's memory: tensors "<prefix><layer>.<i>" and ".pending", and how many there are of
// each.
void put_video(const VideoState& state, const std::string& prefix, std::map<std::string, Tensor>& tensors) {
  for (size_t l = 0; l < state.size(); ++l) {
    const std::string at = prefix + std::to_string(l) + ".";
    for (size_t i = 0; i < state[l].frames.size(); ++i)
      tensors[at + std::to_string(i)] = state[l].frames[i].to(Device::cpu);
    if (state[l].pending) tensors[at + "pending"] = state[l].pending.to(Device::cpu);
  }
}

Json layout_of(const VideoState& state) {
  Json layers = Json::array();
  for (const LayerState& layer : state) layers.push_back({layer.frames.size(), layer.started});
  return layers;
}

// None in files of models without an autoencoder.
VideoState get_video(const SafeTensors& file, const std::string& name) {
  VideoState state;
  const auto it = file.metadata().find(name);
  if (it == file.metadata().end()) return state;
  const Json layers = parse_json(it->second, file.path());
  check(layers.is_array(), file.path(), ": bad ", name);
  for (size_t l = 0; l < layers.size(); ++l) {
    const Json& layer = layers[l];
    check(layer.is_array() && layer.size() == 2 && layer[0].is_number_unsigned() && layer[1].is_boolean(),
          file.path(), ": bad ", name);
    const std::string at = name + "." + std::to_string(l) + ".";
    LayerState s;
    for (size_t i = 0; i < layer[0].get<size_t>(); ++i) s.frames.push_back(file.get(at + std::to_string(i)));
    if (file.contains(at + "pending")) s.pending = file.get(at + "pending");
    s.started = layer[1].get<bool>();
    state.push_back(s);
  }
  return state;
}

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
  put_video(state.encoder, "encoder.", tensors);
  put_video(state.decoder, "decoder.", tensors);
  save_safetensors(path, tensors,
                   {{"kind", "rivulet edit state"},
                    {"chunk", std::to_string(state.stream.chunk)},
                    {"frames", std::to_string(state.stream.frames)},
                    {"blocks", std::to_string(state.stream.blocks.size())},
                    {"seed", std::to_string(int64_t(state.noise.seed))},
                    {"drawn", std::to_string(int64_t(state.noise.offset))},
                    {"encoder", layout_of(state.encoder).dump()},
                    {"decoder", layout_of(state.decoder).dump()}});
}

EditState load_state(const std::string& path) {
  const SafeTensors file(path);
  EditState state;
  const int64_t chunk = read_count(file, "chunk"), frames = read_count(file, "frames");
  state.noise.seed = uint64_t(read_count(file, "seed"));
  state.noise.offset = uint64_t(read_count(file, "drawn"));
  state.stream = get_stream(file, "", chunk, frames, read_count(file, "blocks"));
  state.encoder = get_video(file, "encoder");
  state.decoder = get_video(file, "decoder");
  return state;
}

Editor::Editor(EditModel model, std::shared_ptr<const CreekVae> vae)
    : model_(std::move(model)), vae_(std::move(vae)) {
  const EditModelConfig& c = model_.config();
  check((c.patch > 0) != (vae_ != nullptr), "'", c.name, "' ", vae_ ? "needs no" : "needs its",
        " video autoencoder");
  check(!vae_ || vae_->vae.config().latent_channels == c.dit.latent_channels, "'", c.name,
        "' has latents of ", c.dit.latent_channels, " channels, its autoencoder ",
        vae_ ? vae_->vae.config().latent_channels : 0);
}

Editor Editor::load(const std::string& dir, Device device) {
  EditModel model = EditModel::load(dir, device);
  const EditModelConfig& c = model.config();
  if (c.patch > 0) return Editor(std::move(model));
  check(!c.autoencoder.empty(), dir,
        "/config.json: autoencoder, the folder of the video autoencoder, is missing");
  const auto vae = std::make_shared<const CreekVae>(CreekVae::load(dir + "/" + c.autoencoder, device));
  return Editor(std::move(model), vae);
}

int64_t Editor::chunk_frames() const {
  const int64_t latents = model_.config().dit.chunk_frames;
  return vae_ ? latents * vae_->vae.config().temporal() : latents;
}

Tensor Editor::step(const Tensor& frames, const Prompt& prompt, EditState& state,
                    const SampleOptions& options) const {
  check(frames.dtype() == DType::u8 && frames.dims() == 4 && frames.dim(0) == next_chunk_frames(state),
        "edit: frames of ", frames.dtype(), " ", frames.shape(), ", the next chunk takes u8 [",
        next_chunk_frames(state), ", H, W, 3]");
  VideoState encoder = state.encoder, decoder = state.decoder;  // as they were, if a step fails
  const Tensor latents = denoise(encode_frames(frames, encoder), prompt, state, options).latents;
  const Tensor edited = decode_frames(latents, decoder);
  state.encoder = std::move(encoder);
  state.decoder = std::move(decoder);
  return edited;
}

Tensor Editor::encode_frames(const Tensor& frames, VideoState& encoder) const {
  const NoGrad off;
  // Dense, since every step reads it several times.
  if (!vae_) return model_.codec().encode(frames).to(model_.device()).contiguous();
  const Tensor unit = u8_to_unit(frames).unsqueeze(0).to(model_.device());
  const Tensor latents = vae_->vae.encode(unit * 2.0 - 1.0, encoder);
  check(latents.defined(), "edit: ", frames.dim(0), " frames complete no latent");
  return latents.contiguous();
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
  check(!vae_ || (frames.dim(0) - 1) % vae_->vae.config().temporal() == 0, "edit: a clip of ", frames.dim(0),
        " frames, '", c.name, "' takes 1 more than a multiple of ", vae_ ? vae_->vae.config().temporal() : 1);
  VideoState encoder, decoder;
  const SourceLatents source = model_.source(encode_frames(frames, encoder));
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
  return decode_frames(latents, decoder);
}

Tensor Editor::decode_frames(const Tensor& latents, VideoState& decoder) const {
  const NoGrad off;
  if (!vae_) return unit_to_u8(model_.codec().decode(latents.to(Device::cpu)));
  const Tensor frames = vae_->vae.decode(latents, decoder).select(0, 0) * 0.5 + 0.5;
  return unit_to_u8(frames.contiguous()).to(Device::cpu);
}

}  // namespace rivulet
