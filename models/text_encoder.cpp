#include "models/text_encoder.h"

#include <filesystem>

#include "models/gemma2/gemma2.h"
#include "models/gemma2/tokenizer.h"
#include "tensor/weight_file.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

const std::string kPrefix = "model.";  // of all names in the file

Gemma2Config config_of(const std::string& dir) {
  const std::string path = dir + "/config.json";
  return fs::exists(path) ? read_gemma2_config(read_json(path), path) : Gemma2Config{};
}

std::string weights_of(const std::string& dir) {
  for (const char* name : {"/model.safetensors", "/model.safetensors.index.json"})
    if (fs::exists(dir + name)) return dir + name;
  fail(dir, ": holds neither model.safetensors nor model.safetensors.index.json");
}

std::map<std::string, Shape> shapes_of(const Gemma2Config& config) {
  std::map<std::string, Shape> shapes;
  Gemma2 model(config, Device::meta);
  for (const auto& [name, t] : named_tensors(model)) shapes[kPrefix + name] = t.shape();
  return shapes;
}

}  // namespace

struct TextEncoder::Impl {
  std::string dir;
  TextEncoderOptions options;
  Gemma2Config config;
  Tokenizer tokenizer;
  Gemma2 model;                      // where it is used; without tensors when dropped
  Gemma2 host;                       // of WeightHome::host
  std::unique_ptr<WeightFile> file;  // while tensors may be views of it

  bool loaded() const { return model.norm.weight.defined(); }

  WeightFile open() const {
    const std::string path = weights_of(dir);
    WeightFile weights = open_weights(path);
    std::map<std::string, Tensor> tensors = weights.tensors;
    tensors.erase("lm_head.weight");  // an output layer, which shares the table of embeddings
    const std::string problems = misfits(tensors, shapes_of(config));
    check(problems.empty(), path, ": does not fit the text encoder:", problems);
    return weights;
  }

  // The table of embeddings is left where it is, in the file or in main memory: a few hundred rows are read.
  void load() {
    if (options.home == WeightHome::host && host.norm.weight.defined()) {
      model = host;
      move_layers(model, [&](const Tensor& t) { return t.to(options.device); });
      return;
    }
    file = std::make_unique<WeightFile>(open());
    model = Gemma2(config, Device::meta);
    for_each_tensor(model, [&](const std::string& name, Tensor& t) { t = file->tensors.at(kPrefix + name); });
    if (options.home == WeightHome::host) {
      for_each_tensor(model, [&](const std::string&, Tensor& t) {
        const Tensor view = t;
        t = t.to(options.dtype).clone();
        file->forget(view);
      });
      host = model;
      file.reset();
    }
    move_layers(model, [&](const Tensor& t) {
      const Tensor there = t.contiguous().to(options.device).to(options.dtype);
      if (file && there.storage() != t.storage()) file->forget(t);
      return there;
    });
  }

  template <class F>
  static void move_layers(Gemma2& model, F&& f) {
    for_each_tensor(model, [&](const std::string& name, Tensor& t) {
      if (name != "embed_tokens.weight") t = f(t);
    });
  }

  void drop() {
    model = Gemma2();
    host = Gemma2();
    file.reset();
  }

  TextEmbedding run(const PromptTokens& tokens) {
    const NoGrad off;
    if (!loaded()) load();
    Tensor ids({1, int64_t(tokens.ids.size())}, DType::i64);
    std::copy(tokens.ids.begin(), tokens.ids.end(), ids.data<int64_t>());
    const auto [rows, mask] = kept_rows(options.prompt, tokens, model(ids, {}, options.soft_cap));
    if (options.home == WeightHome::files) drop();
    if (options.home == WeightHome::host) model = Gemma2();
    return {rows, mask};
  }

  int64_t bytes_on(Device device) const {
    int64_t bytes = 0;
    const auto add = [&](const Gemma2& m) {
      Gemma2 copy = m;
      for_each_tensor(copy, [&](const std::string&, Tensor& t) {
        const bool mapped = file && file->mappings.count(t.storage());
        if (t.device() == device && !mapped) bytes += t.bytes();
      });
    };
    add(model);
    if (!loaded() || options.device != Device::cpu) add(host);
    return bytes;
  }
};

TextEncoder::TextEncoder(const std::string& dir, const TextEncoderOptions& options) : impl_(new Impl) {
  check(fs::is_directory(dir), dir, ": not a folder with a text encoder");
  check(is_floating(options.dtype), "text encoder: weights of ", options.dtype);
  Impl& i = *impl_;
  i.dir = dir;
  i.options = options;
  i.config = config_of(dir);
  i.tokenizer = Tokenizer::load(dir);
  check(i.tokenizer.size() <= i.config.vocabulary, dir, ": the tokenizer has ", i.tokenizer.size(),
        " pieces, the model ", i.config.vocabulary, " rows");
  // A vocabulary of the same size whose ids mean something else would pass unnoticed.
  const std::vector<int64_t>& prefix = options.prompt.prefix;
  check(i.tokenizer.size() < i.config.vocabulary || i.tokenizer.encode(i.tokenizer.decode(prefix)) == prefix,
        dir, ": the tokenizer is not the one that the fixed instruction was tokenised with");
  i.open();
}
TextEncoder::~TextEncoder() = default;
TextEncoder::TextEncoder(TextEncoder&&) noexcept = default;

TextEmbedding TextEncoder::encode(const std::string& prompt) {
  return impl_->run(instruction_tokens(impl_->options.prompt, impl_->tokenizer, prompt));
}
TextEmbedding TextEncoder::encode_negative() { return impl_->run({impl_->options.prompt.negative, 1}); }
TextEmbedding TextEncoder::encode_negative(const std::string& text) {
  return impl_->run(plain_tokens(impl_->options.prompt, impl_->tokenizer, text));
}

void TextEncoder::drop_weights() { impl_->drop(); }
int64_t TextEncoder::rows() const { return impl_->options.prompt.rows; }
int64_t TextEncoder::channels() const { return impl_->config.width; }
int64_t TextEncoder::bytes_on_device() const {
  return impl_->options.device == Device::cpu ? 0 : impl_->bytes_on(impl_->options.device);
}
int64_t TextEncoder::bytes_on_host() const { return impl_->bytes_on(Device::cpu); }

std::string with_motion_score(const std::string& prompt, int score) {
  const std::string text = stripped(prompt);
  return score == 0 ? text : text + " motion score: " + std::to_string(score) + ".";
}

}  // namespace rivulet
