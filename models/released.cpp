#include "models/released.h"

#include <cmath>
#include <filesystem>

#include "models/ltx2_vae/names.h"
#include "models/ltx2_vae/vae.h"
#include "models/taeltx2/taeltx2.h"

namespace rivulet {
namespace {

namespace fs = std::filesystem;
const char* const kSanaLicence = "NVIDIA's, stated in the repository";
const char* const kLtxLicence = "LTX-2 Community License, stated in the repository";

template <class M>
NamedShapes shapes_of(M&& module) {
  NamedShapes out;
  for_each_tensor(module, [&](const std::string& name, Tensor& t) { out[name] = t.shape(); });
  return out;
}

std::map<std::string, Tensor> as_they_are(const WeightFile& file) { return file.tensors; }

// Convolutions keep the size of what they read; residual branches and samplers are quieter, since their sums
// grow with depth.
RandomWeight random_conv(const std::string& name, const Shape& shape) {
  if (name == "latents_std") return {1, 0};
  if (shape.size() < 2) return {0, 0.02};
  const bool branch_end = name.find("conv2.conv.weight") != std::string::npos,
             sampler = name.find("samplers.") != std::string::npos;
  return {0, (branch_end ? 0.1 : sampler ? 0.5 : 1) / std::sqrt(double(shape.numel() / shape[0]))};
}

RandomWeight random_sana(const std::string& name, const Shape& shape) {
  return random_dit_weight(name, shape, DitConfig{}.depth);
}

// Gemma's norm weights are offsets from 1, and its embedding is multiplied by sqrt(width).
RandomWeight random_gemma(const std::string& name, const Shape& shape) {
  if (shape.size() < 2) return {0, 0.02};
  return {0, name == "model.embed_tokens.weight" ? 0.02 : 1 / std::sqrt(double(shape[1]))};
}

ReleasedModel sana(const std::string& variant) {
  DitConfig config;
  config.variant = variant;
  const bool streams = variant == "streaming";
  const std::string name = "sana-" + variant + "-2b",
                    file = streams ? "dit/sana_streaming_ar.pth" : "dit/*.pth";
  return {
      name,
      streams ? "the streaming transformer" : "the bidirectional transformer, for short clips",
      "Efficient-Large-Model/SANA-Streaming",
      file,
      kSanaLicence,
      {name + ".safetensors", name + ".pth", "SANA-Streaming/" + (streams ? file : "dit/" + name + ".pth")},
      dit_shapes(config),
      unread_dit_shapes(config),
      dit_tensors,
      random_sana};
}

ReleasedModel ltx2_vae(bool causal) {
  const std::string name = causal ? "ltx2-vae-causal" : "ltx2-vae",
                    folder = causal ? "ltx2_causal_vae_0516" : "vae",
                    repository = causal ? "SANA-Streaming" : "LTX-2",
                    weights = "diffusion_pytorch_model.safetensors";
  return {name,
          causal ? "the video autoencoder whose decoder streams"
                 : "the video autoencoder, decoding both ways in time",
          (causal ? "Efficient-Large-Model/" : "Lightricks/") + repository,
          folder + "/" + weights,
          causal ? kSanaLicence : kLtxLicence,
          {name + ".safetensors", name + "/" + weights, repository + "/" + folder + "/" + weights},
          shapes_of(VideoVae(ltx2_vae_config(), Device::meta)),
          {},
          ltx2_vae_tensors,
          random_conv};
}

ReleasedModel tiny_vae() {
  return {"taeltx2",
          "the tiny autoencoder of the same latents",
          "taehv (madebyollin)",
          "taeltx_2.safetensors",
          "MIT",
          {"taeltx2.safetensors", "taeltx_2.safetensors", "taeltx_2.pth"},
          shapes_of(TinyVae({}, Device::meta)),
          {},
          as_they_are,
          random_conv};
}

ReleasedModel gemma() {
  constexpr int64_t kWidth = 2304, kMlp = 9216, kQuery = 2048, kKey = 1024, kWords = 256000;
  NamedShapes shapes = {{"model.embed_tokens.weight", {kWords, kWidth}}, {"model.norm.weight", {kWidth}}};
  for (int i = 0; i < 26; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    shapes[layer + "self_attn.q_proj.weight"] = {kQuery, kWidth};
    shapes[layer + "self_attn.k_proj.weight"] = {kKey, kWidth};
    shapes[layer + "self_attn.v_proj.weight"] = {kKey, kWidth};
    shapes[layer + "self_attn.o_proj.weight"] = {kWidth, kQuery};
    shapes[layer + "mlp.gate_proj.weight"] = {kMlp, kWidth};
    shapes[layer + "mlp.up_proj.weight"] = {kMlp, kWidth};
    shapes[layer + "mlp.down_proj.weight"] = {kWidth, kMlp};
    for (const char* norm : {"input", "post_attention", "pre_feedforward", "post_feedforward"})
      shapes[layer + norm + "_layernorm.weight"] = {kWidth};
  }
  return {"gemma-2-2b-it",
          "the text encoder",
          "Efficient-Large-Model/gemma-2-2b-it",
          "model.safetensors.index.json",
          "Gemma Terms of Use",
          {"gemma-2-2b-it/model.safetensors", "gemma-2-2b-it/model.safetensors.index.json"},
          shapes,
          {},
          as_they_are,
          random_gemma};
}

}  // namespace

int64_t ReleasedModel::elements() const {
  int64_t n = 0;
  for (const auto& [name, shape] : tensors) n += shape.numel();
  return n;
}

std::vector<std::string> released_model_names() {
  return {"sana-streaming-2b", "sana-bidirectional-2b", "ltx2-vae-causal", "ltx2-vae",
          "taeltx2",           "gemma-2-2b-it"};
}

ReleasedModel released_model(const std::string& name) {
  if (name == "sana-streaming-2b") return sana("streaming");
  if (name == "sana-bidirectional-2b") return sana("bidirectional");
  if (name == "ltx2-vae-causal") return ltx2_vae(true);
  if (name == "ltx2-vae") return ltx2_vae(false);
  if (name == "taeltx2") return tiny_vae();
  if (name == "gemma-2-2b-it") return gemma();
  std::string list;
  for (const std::string& known : released_model_names()) list += (list.empty() ? "" : ", ") + known;
  fail("'", name, "' is not one of the released models: ", list);
}

bool is_there(const ReleasedModel& model, const std::string& folder) {
  for (const std::string& place : model.places)
    if (fs::exists(fs::path(folder) / place)) return true;
  return false;
}

std::string find_released(const ReleasedModel& model, const std::string& folder) {
  std::string places;
  for (const std::string& place : model.places) {
    const fs::path path = fs::path(folder) / place;
    if (fs::exists(path)) return path.string();
    places += "\n  " + path.string();
  }
  fail(model.name, ": not found; put ", model.file, " of ", model.repository, " at one of:", places);
}

std::map<std::string, Tensor> fitting_tensors(const ReleasedModel& model, const WeightFile& file) {
  std::map<std::string, Tensor> out = model.own_names(file);
  const std::string problems = misfits(out, model.tensors, model.optional);
  check(problems.empty(), file.path, ": does not fit ", model.name, ":", problems);
  for (const auto& [name, shape] : model.optional) out.erase(name);
  return out;
}

}  // namespace rivulet
