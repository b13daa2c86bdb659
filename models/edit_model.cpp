#include "models/edit_model.h"

#include <sys/stat.h>

#include "models/colour_basis.h"
#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/mix.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

// Below this level the residual form divides by the floor instead: nothing is left to predict there.
constexpr double kLowestLevel = 1e-3;

constexpr int64_t kMixed = 3 * (kColourFunctions + 3);  // channels of u that hold the matrix

// v of the source_residual form.
Tensor near_source(const Tensor& x, const Tensor& source, const Tensor& u, const Tensor& level, double r) {
  const Tensor rest = 1.0 - level;
  const Tensor spread = square(level) + square(rest) * (r * r);
  const Tensor of_noise = (level - rest * (r * r)) / spread;
  return (x - source * rest) * of_noise - source + u * (rsqrt(spread) * r);
}

// x0 of the colour_residual form; source and u [B, 3F, T, H, W], channels 3 * frequency + colour. The last 36
// channels weigh the colour basis, three results an operand.
Tensor colour_residual(const SourceLatents& source, const Tensor& u) {
  const Tensor& z = source.latents;
  const int64_t B = z.dim(0), C = z.dim(1), N = z.numel() / (B * C);
  const Tensor weights = u.slice(1, C - kMixed, C).reshape({B, kMixed / 3, 3, N});
  return z + pad(u.slice(1, 0, C - kMixed), 1, 0, kMixed) + mix(source.basis, weights).reshape(z.shape());
}

}  // namespace

EditModelConfig read_edit_model_config(Fields f) {
  EditModelConfig c;
  f.required("name", c.name);
  Fields dit = f.object("dit");
  c.dit = read_dit_config(dit);
  dit.done();
  f.choice("prediction", c.prediction, {"velocity", "colour_residual", "source_residual"});
  f.optional("residual_std", c.residual_std, above(0));
  f.required("patch", c.patch, between(0, 64));
  f.required("first_chunk_frames", c.first_chunk_frames, between(1, 1024));
  f.required("instruction_tokens", c.instruction_tokens, between(1, 1024));
  c.vocabulary = Vocabulary::from_json(f.raw("vocabulary"), f.where("vocabulary"));
  f.done();
  check(c.patch == 0 || c.dit.latent_channels == 3 * c.patch * c.patch, f.where("patch"), ": ", c.patch,
        " makes ", 3 * c.patch * c.patch, " latent channels, dit.latent_channels is ", c.dit.latent_channels);
  check(c.prediction != "colour_residual" || (c.patch > 0 && c.dit.latent_channels > kMixed),
        f.where("patch"), ": colour_residual needs patches of 4 or more, got ", c.patch);
  return c;
}

Json to_json(const EditModelConfig& c) {
  Json j = {{"name", c.name},
            {"dit", to_json(c.dit)},
            {"prediction", c.prediction},
            {"patch", c.patch},
            {"first_chunk_frames", c.first_chunk_frames},
            {"instruction_tokens", c.instruction_tokens},
            {"vocabulary", c.vocabulary.to_json()}};
  if (c.prediction == "source_residual") j["residual_std"] = c.residual_std;
  return j;
}

EditModel::EditModel(const EditModelConfig& c, Device device)
    : text(c.vocabulary.size(), c.instruction_tokens, c.dit.caption_channels, device),
      dit(c.dit, device),
      config_(c) {
  if (c.patch > 0) codec_.emplace(c.patch);
}

const PatchCodec& EditModel::codec() const {
  check(codec_.has_value(), "'", config_.name,
        "' works on the latents of a video autoencoder, not on patches");
  return *codec_;
}

void EditModel::initialise(Rng& rng) {
  text.initialise(rng);
  dit.initialise(rng);
}

EditModel EditModel::load(const std::string& dir, Device device) {
  const std::string path = dir + "/config.json";
  EditModel model(read_edit_model_config(Fields(read_json(path), path)), device);
  load_tensors(named_tensors(model), SafeTensors(dir + "/weights.safetensors"));
  return model;
}

void EditModel::copy_from(EditModel& other) {
  const NoGrad off;
  check(config_.vocabulary.words() == other.config_.vocabulary.words(), "'", config_.name, "' and '",
        other.config_.name, "' were not taught the same words");
  const NamedTensors from = named_tensors(other), to = named_tensors(*this);
  check(from.size() == to.size(), "'", config_.name, "' has ", to.size(), " tensors, '", other.config_.name,
        "' ", from.size());
  for (size_t i = 0; i < to.size(); ++i) {
    const auto& [name, source] = from[i];
    Tensor value = source.detach(), place = to[i].second.detach();
    if (value.numel() == 3 * place.numel()) value = value.select(2, 1);
    if (place.numel() == 3 * value.numel()) {
      place.fill(0);
      place = place.select(2, 1);
    }
    check(name == to[i].first && value.numel() == place.numel(), "'", config_.name, "': ", to[i].first, " ",
          to[i].second.shape(), " against ", name, " ", source.shape());
    place.copy_from(value.reshape(place.shape()).to(device()));
  }
}

void EditModel::save(const std::string& dir, DType dtype) {
  std::map<std::string, Tensor> weights;
  for (const auto& [name, t] : named_tensors(*this)) weights[name] = t.detach().to(Device::cpu).to(dtype);
  ::mkdir(dir.c_str(), 0755);  // an existing folder is fine; a failure shows when the files are written
  save_safetensors(dir + "/weights.safetensors", weights);
  write_file(dir + "/config.json", to_json(config_).dump(2) + "\n");
}

TextContext EditModel::encode(const std::vector<std::string>& texts) const {
  const Tensor ids = config_.vocabulary.encode_batch(texts, config_.instruction_tokens);
  Tensor mask(ids.shape(), DType::u8);
  for (int64_t i = 0; i < ids.numel(); ++i)
    mask.data<uint8_t>()[i] = ids.data<int64_t>()[i] != Vocabulary::kPadding;
  const Tensor mask_there = mask.to(device());
  return dit.text_context(text(ids.to(device()), mask_there), mask_there);
}

Prompt EditModel::prompt(const std::string& instruction) const {
  const Encoding words = config_.vocabulary.encode(instruction);
  std::string unknown;
  for (const std::string& w : words.unknown) unknown += (unknown.empty() ? "" : ", ") + w;
  check(unknown.empty(), "instruction: '", config_.name, "' was not taught: ", unknown);
  check(!words.ids.empty(), "instruction: the text is empty");
  check(int64_t(words.ids.size()) <= config_.instruction_tokens, "instruction: ", words.ids.size(),
        " words, at most ", config_.instruction_tokens, " are read");
  const NoGrad off;
  return {instruction, encode({instruction})};
}

SourceLatents EditModel::source(const Tensor& latents) const {
  if (config_.prediction != "colour_residual") return {latents, {}};
  return {latents, colour_basis(codec(), latents)};
}

Tensor EditModel::velocity(const Tensor& x, const SourceLatents& source, const Tensor& sigma, const Tensor& t,
                           const TextContext& context, const StreamState* past, StreamState* next) const {
  const Tensor told = t.defined() ? t : sigma * 1000.0;
  // The network's own order of channels is by token; turned once, it is not gathered by every op below.
  const Tensor u = dit(cat({x, source.latents}, 1), told, context, past, next).contiguous().to(x.dtype());
  if (config_.prediction == "velocity") return u;
  const Tensor level = over_latents(sigma.to(device()));
  if (config_.prediction == "source_residual")
    return near_source(x, source.latents, u, level, config_.residual_std);
  return (x - colour_residual(source, u)) / maximum(level, full(Shape{}, kLowestLevel, DType::f32, device()));
}

StreamState EditModel::remember(const Tensor& x0, const Tensor& source, const TextContext& context,
                                const StreamState& past) const {
  const NoGrad off;
  StreamState next;
  dit(cat({x0, source}, 1), zeros({x0.dim(0)}, DType::f32, device()), context, &past, &next);
  return next;
}

}  // namespace rivulet
