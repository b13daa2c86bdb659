// How the release puts an instruction to its text encoder (vae_text.md 5.1): a fixed instruction in front
// asks for a detailed description, and only the first token and those of the user's own words are kept.
#pragma once

#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

class Tokenizer;

struct PromptTemplate {
  // The fixed instruction, as far as no user's word changes it: its last token, a lone space, joins the first
  // word. Starts with the id that opens a text.
  std::vector<int64_t> prefix;
  std::vector<int64_t> negative;  // the negative prompt of the bidirectional model
  int64_t rows = 300;             // kept: the first token and rows - 1 behind the prefix
};

// Of SANA-Streaming, in Gemma-2's ids.
const PromptTemplate& released_prompt();

// The tokens to run, without padding, and which of their hidden states are kept: the first and those from
// `kept_from` on.
struct PromptTokens {
  std::vector<int64_t> ids;
  int64_t kept_from = 1;
};

// White space at both ends does not count; tokens beyond the last row are cut. Throws when nothing is left.
PromptTokens instruction_tokens(const PromptTemplate& prompt, const Tokenizer& tokenizer,
                                const std::string& text);
// The text alone; an empty one is the opening token.
PromptTokens plain_tokens(const PromptTemplate& prompt, const Tokenizer& tokenizer, const std::string& text);

// The kept ones of hidden [1, N, C] as rows [1, rows, C] f32, zeros behind the last, and which are real, u8
// [1, rows].
std::pair<Tensor, Tensor> kept_rows(const PromptTemplate& prompt, const PromptTokens& tokens,
                                    const Tensor& hidden);

// The text without white space at its ends.
std::string stripped(const std::string& text);

}  // namespace rivulet
