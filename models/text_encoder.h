// From an instruction to what the 2B transformer reads: the prompt template, the tokenizer and Gemma-2
// (vae_text.md 5). The large network runs once per prompt; its weights need not stay in memory after that.
#pragma once

#include <memory>
#include <string>

#include "models/gemma2/prompt.h"

namespace rivulet {

// Rows of the text, [1, 300, 2304] f32 for the released model, and which of them are real: [1, 300] u8. Rows
// that are not real hold zeros. Both on the encoder's device; what Dit::text_context takes.
struct TextEmbedding {
  Tensor rows, mask;
};

// Where the weights are between two calls of encode().
enum class WeightHome {
  device,  // stay where they are used
  host,    // move to main memory after each call
  files,   // are freed after each call and read again by the next
};

struct TextEncoderOptions {
  Device device = Device::cpu;
  DType dtype = DType::bf16;  // of the weights and of the arithmetic between them
  WeightHome home = WeightHome::files;
  // true: attention logits are capped at 50, as in Gemma-2's paper; false: they are not, as in the released
  // pipeline, whose attention kernel ignores the cap.
  bool soft_cap = false;
  PromptTemplate prompt = released_prompt();
};

class TextEncoder {
 public:
  // `dir` is the folder as published: config.json (without it, the 2B model's sizes), tokenizer.json or
  // tokenizer.model, and model.safetensors or its shards with model.safetensors.index.json. Throws when
  // something is missing or does not fit, the weights' names and shapes included, but reads no weights yet.
  TextEncoder(const std::string& dir, const TextEncoderOptions& options = {});
  ~TextEncoder();
  TextEncoder(TextEncoder&&) noexcept;

  // An instruction, behind the fixed one of the release. White space at both ends does not count; tokens
  // beyond the 299th are cut. Throws when nothing is left.
  TextEmbedding encode(const std::string& prompt);
  // The negative prompt of the bidirectional model: the text alone. Without a text, the release's own.
  TextEmbedding encode_negative();
  TextEmbedding encode_negative(const std::string& text);

  // Frees the weights now, whatever their home; the next call reads them again.
  void drop_weights();

  int64_t rows() const;      // 300
  int64_t channels() const;  // 2304
  // Bytes of weights held at this moment on the device and in main memory; mapped files do not count.
  int64_t bytes_on_device() const, bytes_on_host() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What the bidirectional model's instructions end with (score 10 by default); a score of 0 adds nothing.
std::string with_motion_score(const std::string& prompt, int score = 10);

}  // namespace rivulet
