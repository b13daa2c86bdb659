// The words a small network was taught. Free text is cut into words and each word becomes an id; words
// outside the list are reported instead of guessed.
//
// Ids: 0 pads a batch to equal lengths, 1 stands for "no instruction" (text dropout), words start at 2.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

// Lower-case words of free text: hyphens and punctuation separate, apostrophes vanish ("don't" is "dont").
// Letters outside ASCII are kept as they stand.
std::vector<std::string> tokenize(const std::string& text);

// Instructions with their words as ids.
struct Encoding {
  std::vector<int64_t> ids;
  std::vector<std::string> unknown;  // each once, in order of appearance
};

class Vocabulary {
 public:
  static constexpr int64_t kPadding = 0, kNull = 1, kFirstWord = 2;

  Vocabulary() = default;
  // Word i gets id i + 2. Throws on a word that tokenize() would change, and on a repeated one.
  explicit Vocabulary(std::vector<std::string> words);
  // A JSON list of words, as it stands in a model's configuration; `source` opens the errors.
  static Vocabulary from_json(const nlohmann::json& list, const std::string& source);
  nlohmann::json to_json() const { return words_; }

  // Ids in use, padding and null included: the rows of an embedding table.
  int64_t size() const { return kFirstWord + static_cast<int64_t>(words_.size()); }
  const std::vector<std::string>& words() const { return words_; }
  // The id of a word as it stands, as a singular or plural, or in American spelling; -1 when unknown.
  int64_t id(const std::string& word) const;

  Encoding encode(const std::string& text) const;
  // i64 [B, L], padded behind; a text without a known word is the single id `kNull`. Words beyond L are cut.
  Tensor encode_batch(const std::vector<std::string>& texts, int64_t length) const;

 private:
  std::vector<std::string> words_;
  std::map<std::string, int64_t> ids_;
};

}  // namespace rivulet
