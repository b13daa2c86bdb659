// The text encoder from a folder as published: which hidden states come out, where the weights are between
// two prompts, and what a wrong folder says. The decoder's own figures are in golden_test.
#include <doctest/doctest.h>

#include "models/gemma2/gemma2.h"
#include "models/gemma2/tokenizer.h"
#include "models/golden.h"
#include "models/text_encoder.h"
#include "ops/elementwise.h"
#include "ops/shape.h"
#include "tensor/cuda.h"
#include "tests/fixtures.h"

using namespace rivulet;

namespace {

constexpr const char* kConfig = R"({"model_type": "gemma2", "vocab_size": 910, "hidden_size": 48,
  "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "intermediate_size": 80, "query_pre_attn_scalar": 16, "sliding_window": 7, "attn_logit_softcapping": 5.0,
  "hidden_activation": "gelu_pytorch_tanh", "torch_dtype": "bfloat16"})";

// A folder with a small model of random weights, kept in bf16 as the release is.
struct ModelFolder {
  TempDir dir;
  Gemma2 model{read_gemma2_config(parse_json(kConfig, "config"), "config")};
  PromptTemplate prompt;

  ModelFolder() {
    Rng rng{3};
    for_each_tensor(model, [&](const std::string&, Tensor& t) {
      t = (randn(t.shape(), rng) * (t.dims() == 1 ? 0.2 : 0.3)).to(DType::bf16);
    });
    write({});
    write_file(dir / "config.json", kConfig);
    std::filesystem::copy(std::string(RIVULET_SOURCE_DIR) + "/tests/data/tokenizer_small.json",
                          dir / "tokenizer.json");
    const Tokenizer t = Tokenizer::load(dir.path);
    prompt = {.prefix = t.encode("Write what this asks for:"), .negative = t.encode("blurred"), .rows = 20};
    convert(model, DType::f32);
  }
  // Writes the weights, those named in `without` left out.
  void write(const std::vector<std::string>& without) {
    std::map<std::string, Tensor> weights;
    for (const auto& [name, t] : named_tensors(model)) weights["model." + name] = t.to(DType::bf16);
    for (const std::string& name : without) weights.erase(name);
    save_safetensors(dir / "model.safetensors", weights);
  }
  TextEncoderOptions options(WeightHome home = WeightHome::files) const {
    return {.device = Device::cpu, .dtype = DType::f32, .home = home, .soft_cap = true, .prompt = prompt};
  }
};

std::string error_of(const ModelFolder& folder) {
  try {
    TextEncoder(folder.dir.path, folder.options());
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

void says(const std::string& text, const std::string& part) {
  CAPTURE(text);
  CHECK(text.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("the rows are those of the padded text, the rest is zero") {
  const NoGrad off;
  const ModelFolder f;
  TextEncoder encoder(f.dir.path, f.options());
  CHECK(encoder.rows() == 20);
  CHECK(encoder.channels() == 48);
  const Tokenizer t = Tokenizer::load(f.dir.path);
  for (const std::string text : {"turn the sky red", "  a "}) {
    const TextEmbedding e = encoder.encode(text);
    CHECK(e.rows.shape() == Shape{1, 20, 48});
    CHECK(e.mask.shape() == Shape{1, 20});
    // As the release does it: the whole text padded to its full length, the padding masked, then rows picked.
    std::vector<int64_t> ids = f.prompt.prefix;
    const auto own = t.encode(" " + stripped(text), false);
    ids.insert(ids.end(), own.begin(), own.end());
    const int64_t n = int64_t(ids.size()), length = int64_t(f.prompt.prefix.size()) + 19;
    Tensor padded = zeros({1, length}, DType::i64), mask = zeros({1, length}, DType::u8);
    std::copy(ids.begin(), ids.end(), padded.data<int64_t>());
    mask.slice(1, 0, n).fill(1);
    const Tensor hidden = f.model(padded, mask, true);
    const Tensor kept = cat({hidden.slice(1, 0, 1), hidden.slice(1, length - 19, length)}, 1);
    const int64_t real = 1 + int64_t(own.size());
    CHECK(e.mask.slice(1, 0, real).to_vector() == std::vector<double>(size_t(real), 1));
    CHECK(e.mask.slice(1, real, 20).to_vector() == std::vector<double>(size_t(20 - real), 0));
    CHECK(relative_error(e.rows.slice(1, 0, real), kept.slice(1, 0, real)) < 1e-5);
    CHECK(e.rows.slice(1, real, 20).to_vector() == std::vector<double>(size_t(20 - real) * 48, 0));
  }
}

TEST_CASE("the cap on the attention logits is a choice") {
  const ModelFolder f;
  TextEncoderOptions options = f.options();
  const Tensor capped = TextEncoder(f.dir.path, options).encode("a red sky").rows;
  options.soft_cap = false;
  CHECK(relative_error(TextEncoder(f.dir.path, options).encode("a red sky").rows, capped) > 1e-3);
}

TEST_CASE("a negative prompt goes in as it stands") {
  const ModelFolder f;
  TextEncoder encoder(f.dir.path, f.options());
  const TextEmbedding own = encoder.encode_negative(), same = encoder.encode_negative(" blurred ");
  CHECK(own.rows.to_vector() == same.rows.to_vector());
  CHECK(own.mask.to_vector() == same.mask.to_vector());
  const double real = double(f.prompt.negative.size());
  double sum = 0;
  for (const double m : own.mask.to_vector()) sum += m;
  CHECK(sum == real);
  CHECK(encoder.encode_negative("").mask.to_vector()[1] == 0);
}

TEST_CASE("weights stay, move or go, and the rows are the same") {
  const ModelFolder f;
  TextEncoder files(f.dir.path, f.options(WeightHome::files)), host(f.dir.path, f.options(WeightHome::host)),
      device(f.dir.path, f.options(WeightHome::device));
  CHECK(host.bytes_on_host() == 0);
  const auto want = files.encode("snow").rows.to_vector();
  CHECK(files.bytes_on_host() == 0);
  Gemma2 meta(f.model.config(), Device::meta);
  const int64_t all = 4 * count_elements(named_tensors(meta));
  for (TextEncoder* e : {&host, &device}) {
    for (int i = 0; i < 2; ++i) CHECK(e->encode("snow").rows.to_vector() == want);
    CHECK(e->bytes_on_device() == 0);
    e->drop_weights();
    CHECK(e->bytes_on_host() == 0);
    CHECK(e->encode("snow").rows.to_vector() == want);
  }
  CHECK(host.bytes_on_host() == all);
  // The table of embeddings stays in the file, which is in bf16.
  CHECK(device.bytes_on_host() == all - 4 * meta.embedding.numel());
}

TEST_CASE("the encoder on the GPU, in f32 and in bf16") {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  const ModelFolder f;
  const Tensor want = TextEncoder(f.dir.path, f.options()).encode("turn the sky red").rows;
  TextEncoderOptions options = f.options(WeightHome::host);
  options.device = Device::cuda;
  TextEncoder encoder(f.dir.path, options);
  const TextEmbedding e = encoder.encode("turn the sky red");
  CHECK(e.rows.device() == Device::cuda);
  CHECK(e.mask.device() == Device::cuda);
  CHECK(relative_error(e.rows, want) < 1e-5);
  CHECK(encoder.bytes_on_device() == 0);
  CHECK(encoder.bytes_on_host() > 0);
  options.dtype = DType::bf16;
  options.home = WeightHome::device;
  TextEncoder half(f.dir.path, options);
  CHECK(relative_error(half.encode("turn the sky red").rows, want) < 0.03);
  CHECK(half.bytes_on_device() > 0);
  half.drop_weights();
  CHECK(half.bytes_on_device() == 0);
}

TEST_CASE("what a folder that does not fit says") {
  ModelFolder f;
  f.write({"model.layers.1.mlp.up_proj.weight", "model.norm.weight"});
  says(error_of(f), "model.layers.1.mlp.up_proj.weight");
  says(error_of(f), "model.norm.weight");
  f.model.norm.weight = zeros({47});
  f.write({});
  says(error_of(f), "[47]");
  std::filesystem::remove(f.dir / "model.safetensors");
  says(error_of(f), "model.safetensors.index.json");
  Json config = parse_json(kConfig, "config");
  config["model_type"] = "llama";
  write_file(f.dir / "config.json", config.dump());
  says(error_of(f), "'llama', wanted 'gemma2'");
  config["model_type"] = "gemma2";
  config["vocab_size"] = 899;
  write_file(f.dir / "config.json", config.dump());
  says(error_of(f), "900 pieces");
  // The same number of pieces, but not those that the prefix was made of.
  config["vocab_size"] = 900;
  write_file(f.dir / "config.json", config.dump());
  f.prompt.prefix = {2, 11 + 'A'};  // the byte, which a text never gives
  says(error_of(f), "is not the one that the fixed instruction was tokenised with");
  std::filesystem::remove(f.dir / "tokenizer.json");
  says(error_of(f), "holds neither tokenizer.json nor tokenizer.model");
  std::string said = "no error";
  try {
    TextEncoder(f.dir / "nowhere");
  } catch (const Error& e) {
    said = e.what();
  }
  says(said, "not a folder with a text encoder");
}

TEST_CASE("config.json: two ways to give the rotation, and what is refused") {
  Json j = parse_json(kConfig, "config");
  j["rope_theta"] = 5000.0;
  CHECK(read_gemma2_config(j, "c").rope_theta == 5000);
  j["rope_parameters"] = {{"rope_theta", 7000.0}, {"rope_type", "default"}};
  const Gemma2Config c = read_gemma2_config(j, "c");
  CHECK(c.rope_theta == 7000);
  CHECK(c.windowed == std::vector<bool>{true, false, true});
  const auto refused = [&](const std::string& name, const Json& value) {
    Json bad = j;
    bad[name] = value;
    try {
      read_gemma2_config(bad, "c");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  says(refused("hidden_activation", "silu"), "gelu_pytorch_tanh");
  says(refused("attention_bias", true), "biases");
  says(refused("num_key_value_heads", 3), "evenly");
  says(refused("layer_types", {"full_attention"}), "1 layers");
  says(refused("rope_parameters", {{"rope_type", "yarn"}}), "'yarn'");
}

TEST_CASE("the motion score is a sentence at the end") {
  CHECK(with_motion_score(" snow ") == "snow motion score: 10.");
  CHECK(with_motion_score("snow", 0) == "snow");
}
