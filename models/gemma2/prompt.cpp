#include "models/gemma2/prompt.h"

#include <algorithm>

#include "models/gemma2/tokenizer.h"
#include "ops/shape.h"

namespace rivulet {

const PromptTemplate& released_prompt() {
  static const PromptTemplate kPrompt{
      .prefix = {2,      24985, 476,    2425,   18335,  235269, 11941, 671,    664,   98748,  18335,  235281,
                 674,    6572,  11352,  9095,   31017,  10383,  604,   2416,   10304, 235265, 64755,  573,
                 2403,   576,   8637,   575,    573,    2425,   18335, 235292, 108,   235290, 1927,   573,
                 18335,  603,   3890,   235269, 6045,   611,    10480, 85325,  1105,  9276,   235269, 21085,
                 235269, 14114, 235269, 45882,  235269, 578,    26598, 12733,  577,   3104,   40041,  578,
                 13660,  19502, 235265, 108,    235290, 1927,   573,   18335,  603,   3303,   11352,  235269,
                 80745,  578,   14915,  573,    7881,   4691,   9677,  2346,   1163,  1795,   85694,  235265,
                 108,    5958,  11941,  1297,   573,    20085,  5966,  604,    573,   18335,  3582,   578,
                 6858,   3359,  1089,   5942,   45007,  689,    62350, 235292, 108,   2224,   67444,  235292},
      .negative = {2,      235280, 68023,  10629,  675,    5190,   527,   2162,   235269, 100911,
                   46518,  575,    8090,   8252,   29358,  235269, 10334, 72910,  235269, 9902,
                   21006,  235269, 173318, 18812,  235269, 9175,   5990,  4559,   235269, 21499,
                   921,    576,    29067,  235269, 47355,  3285,   21085, 235269, 30577,  51728,
                   235269, 192270, 235269, 578,    24294,  574,    5701,  235269, 10241,  476,
                   989,    26220,  574,    9095,   3281,   235265},
      .rows = 300};
  return kPrompt;
}

std::string stripped(const std::string& text) {
  constexpr const char* kWhite = " \t\n\r\f\v";
  const size_t begin = text.find_first_not_of(kWhite);
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(kWhite) + 1 - begin);
}

PromptTokens instruction_tokens(const PromptTemplate& prompt, const Tokenizer& tokenizer,
                                const std::string& text) {
  const std::string words = stripped(text);
  check(!words.empty(), "instruction: the text is empty");
  PromptTokens tokens{prompt.prefix, int64_t(prompt.prefix.size())};
  const auto own = tokenizer.encode(" " + words, false);
  tokens.ids.insert(tokens.ids.end(), own.begin(),
                    own.begin() + std::min<int64_t>(int64_t(own.size()), prompt.rows - 1));
  return tokens;
}

PromptTokens plain_tokens(const PromptTemplate& prompt, const Tokenizer& tokenizer, const std::string& text) {
  PromptTokens tokens{tokenizer.encode(stripped(text)), 1};
  tokens.ids.resize(size_t(std::min<int64_t>(int64_t(tokens.ids.size()), prompt.rows)));
  return tokens;
}

std::pair<Tensor, Tensor> kept_rows(const PromptTemplate& prompt, const PromptTokens& tokens,
                                    const Tensor& hidden) {
  const int64_t n = int64_t(tokens.ids.size());
  check(hidden.dims() == 3 && hidden.dim(0) == 1 && hidden.dim(1) == n,
        "text encoder: hidden states of shape ", hidden.shape(), " for ", n, " tokens");
  const Tensor kept = cat({hidden.slice(1, 0, 1), hidden.slice(1, tokens.kept_from, n)}, 1).to(DType::f32);
  const int64_t real = kept.dim(1);
  check(real <= prompt.rows, "text encoder: ", real, " rows are kept, the text has ", prompt.rows);
  Tensor mask = zeros({1, prompt.rows}, DType::u8);
  mask.slice(1, 0, real).fill(1);
  return {pad(kept, 1, 0, prompt.rows - real), mask.to(hidden.device())};
}

}  // namespace rivulet
