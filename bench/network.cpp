#include "bench/network.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "ops/attention.h"
#include "ops/depthwise_conv.h"
#include "ops/gdn.h"
#include "ops/shape.h"
#include "train/flow_matching.h"

namespace rivulet::bench {
namespace {

using TensorMap = std::map<std::string, Tensor>;

constexpr int64_t kWidth = 256, kHeight = 144;  // of the stream
constexpr char kInstruction[] = "make the red things blue";
constexpr double kLearningRate = 3e-4;
const AdamWOptions kAdamW = {.beta2 = 0.99, .weight_decay = 0.01};

std::string brook_dir() { return RIVULET_SOURCE_DIR "/models/brook"; }

// u8 frames of drifting waves, a different colour and direction for every seed.
Tensor picture(int64_t frames, int64_t height, int64_t width, int64_t seed) {
  const Tensor out({frames, height, width, 3}, DType::u8);
  uint8_t* p = out.data<uint8_t>();
  for (int64_t f = 0; f < frames; ++f)
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x)
        for (int64_t c = 0; c < 3; ++c) {
          const double phase = 0.05 * double((seed % 3 + 1) * x + (c + 1) * y) + 0.3 * double(f + seed * c);
          *p++ = uint8_t(std::lround(127.5 + 100 * std::sin(phase)));
        }
  return out;
}

// The memory of a stream whose window is full: chunks of one picture, as if they had been edited to itself.
StreamState full_window(const EditModel& model, const TextContext& text) {
  const EditModelConfig& c = model.config();
  StreamState state;
  for (int64_t i = 0; i < std::max<int64_t>(c.dit.cached_chunks, 1); ++i) {
    const int64_t frames = i == 0 ? c.first_chunk_frames : c.dit.chunk_frames;
    const Tensor source = model.codec().encode(picture(frames, kHeight, kWidth, i)).contiguous();
    state = model.remember(source, source, text, state);
  }
  return state;
}

void add_weights(EditModel& model, TensorMap& to) {
  for (const auto& [name, t] : named_tensors(model)) to["weights." + name] = t.detach().clone();
}

void add_text(const TextContext& text, TensorMap& to) {
  to["text.mask"] = text.mask;
  for (size_t i = 0; i < text.keys.size(); ++i) {
    to["text.k." + std::to_string(i)] = text.keys[i].k.detach();
    to["text.v." + std::to_string(i)] = text.keys[i].v.detach();
  }
}

// The kept chunks of a block as one run of keys and one of values.
void add_memory(const StreamState& state, TensorMap& to) {
  for (size_t i = 0; i < state.blocks.size(); ++i) {
    const BlockState& b = state.blocks[i];
    const std::string at = "past." + std::to_string(i) + ".";
    to[at + "tail"] = b.conv_tail;
    if (b.gdn.kv) to[at + "kv"] = b.gdn.kv;
    if (b.gdn.z) to[at + "z"] = b.gdn.z;
    Tensors k, v;
    for (const auto& kept : b.window) {
      k.push_back(kept.second.k);
      v.push_back(kept.second.v);
    }
    if (k.empty()) continue;
    to[at + "k"] = cat(k, 1);
    to[at + "v"] = cat(v, 1);
  }
}

void write(const std::string& path, const TensorMap& tensors, const EditModel& model, int64_t first_frame) {
  save_safetensors(
      path, tensors,
      {{"config", to_json(model.config()).dump()}, {"first_frame", std::to_string(first_frame)}});
}

}  // namespace

EditModelConfig brook_config() {
  const std::string path = brook_dir() + "/config.json";
  if (std::filesystem::exists(path)) return read_edit_model_config(Fields(read_json(path), path));
  EditModelConfig c;
  c.name = "brook";
  c.dit.depth = 5;
  c.dit.width = 128;
  c.dit.heads = 4;
  c.dit.softmax_blocks = {3};
  c.dit.latent_channels = 192;
  c.dit.caption_channels = 64;
  c.prediction = "colour_residual";
  c.vocabulary = Vocabulary(tokenize(kInstruction));
  return c;
}

EditModel brook() {
  if (std::filesystem::exists(brook_dir() + "/weights.safetensors")) return EditModel::load(brook_dir());
  EditModel model(brook_config());
  Rng rng{1};
  model.initialise(rng);
  // An untrained output layer is zero and would hide everything before it.
  const Tensor& out = model.dit.final_linear.weight;
  out.add_in_place(randn(out.shape(), rng), 0.02);
  return model;
}

double dit_flops(const DitConfig& c, int64_t batch, int64_t frames, int64_t h, int64_t w, int64_t keys,
                 int64_t text_tokens) {
  const int64_t tokens = frames * h * w, H = c.heads, D = c.width / c.heads;
  const double N = double(batch * tokens), C = double(c.width), hidden = double(c.mlp_ratio) * C;
  const auto attend = [&](int64_t over) {
    return attention_case().flops({{batch, tokens, H, D}, {batch, over, H, D}, {batch, over, H, D}});
  };
  const double delta_net = gdn_case().flops({{batch, frames, h * w, H, D}}) + 2 * N * C * double(H);
  const double gated = depthwise_conv3x3_case().flops({{batch * frames, h, w, 2 * c.mlp_ratio * c.width}});
  double total = 2 * N * C * double(3 * c.latent_channels);  // patch embedding and output layer
  for (int64_t i = 0; i < c.depth; ++i) {
    total += c.is_softmax(i) ? attend(keys) : delta_net;
    total += 2 * N * C * (5 * C + 2 * C);  // q, k, v, gate, proj; q and proj of the cross-attention
    total += attend(text_tokens);          // keys and values of the text are made once per prompt
    total += 2 * N * C * (3 * hidden + 3 * C) + gated;  // up, down, three temporal taps
  }
  return total;
}

Forward::Forward()
    : model_(brook()),
      t_(full({1}, 893)),
      prompt_(model_.prompt(kInstruction)),
      past_(full_window(model_, prompt_.context)) {
  const Tensor source =
      model_.codec().encode(picture(model_.config().dit.chunk_frames, kHeight, kWidth, 5)).contiguous();
  Rng rng{7};
  x_ = cat({randn(source.shape(), rng), source}, 1);
}

Tensor Forward::run() const {
  const NoGrad off;
  return model_.dit(x_, t_, prompt_.context, &past_);
}

void Forward::save(const std::string& path) {
  TensorMap tensors{{"x", x_}, {"t", t_}, {"out", run().contiguous()}};
  add_weights(model_, tensors);
  add_text(prompt_.context, tensors);
  add_memory(past_, tensors);
  write(path, tensors, model_, past_.frames);
}

Chunk::Chunk()
    : editor_(brook()),
      frames_(picture(editor_.chunk_frames(), kHeight, kWidth, 5)),
      prompt_(editor_.encode(kInstruction)),
      state_{full_window(editor_.model(), prompt_.context), Rng{7}, {}, {}} {}

Tensor Chunk::run() const {
  EditState state = state_;  // the same chunk every time
  return editor_.step(frames_, prompt_, state);
}

void Chunk::save(const std::string& path) {
  EditModel model = editor_.model();
  Rng rng = state_.noise;
  const int64_t patch = model.config().patch, F = frames_.dim(0);
  TensorMap tensors{{"frames", frames_},
                    {"noise", randn({1, model.codec().channels(), F, kHeight / patch, kWidth / patch}, rng)},
                    {"steps", Tensor::of(SampleOptions{}.steps, {int64_t(SampleOptions{}.steps.size())})},
                    {"out", run()}};
  add_weights(model, tensors);
  add_text(prompt_.context, tensors);
  add_memory(state_.stream, tensors);
  write(path, tensors, model, state_.stream.frames);
}

TrainingStep::TrainingStep()
    : model_(brook()),
      params_(named_tensors(model_)),
      optimizer_(params_, kAdamW),
      texts_(kBatch, kInstruction) {
  set_requires_grad(params_, true);
  Tensors sources, targets;
  for (int64_t b = 0; b < kBatch; ++b) {
    const int64_t frames = model_.config().first_chunk_frames;
    sources.push_back(model_.codec().encode(picture(frames, 96, 128, b)));
    targets.push_back(model_.codec().encode(picture(frames, 96, 128, b + 1)));
    levels_.push_back(0.875 - 0.125 * double(b));
  }
  source_ = model_.source(cat(sources, 0).contiguous());
  target_ = cat(targets, 0).contiguous();
  Rng rng{7};
  noise_ = randn(target_.shape(), rng);
}

double TrainingStep::run() {
  zero_grad(params_);
  const Tensor sigma = Tensor::of(levels_, {kBatch});
  const StreamState none;
  const Tensor v =
      model_.velocity(add_noise(target_, noise_, levels_), source_, sigma, {}, model_.encode(texts_), &none);
  const Tensor loss = flow_matching_loss(v, noise_, target_);
  backward(loss);
  optimizer_.step(kLearningRate);
  return loss.detach().to_vector()[0];
}

void TrainingStep::save(const std::string& path) {
  const EditModelConfig& c = model_.config();
  TensorMap tensors{
      {"source", source_.latents},
      {"basis", source_.basis},
      {"target", target_},
      {"noise", noise_},
      {"sigma", Tensor::of(levels_, {kBatch})},
      {"ids", c.vocabulary.encode_batch(texts_, c.instruction_tokens)},
      {"adamw",
       Tensor::of({kLearningRate, kAdamW.beta1, kAdamW.beta2, kAdamW.eps, kAdamW.weight_decay}, {5})}};
  add_weights(model_, tensors);
  std::vector<double> losses;
  for (int i = 0; i < 3; ++i) losses.push_back(run());
  tensors["losses"] = Tensor::of(losses, {3});
  write(path, tensors, model_, 0);
}

}  // namespace rivulet::bench
