#include "models/vocabulary.h"

#include <algorithm>

#include "tensor/error.h"

namespace rivulet {
namespace {

// Short words are no plurals, and the stem keeps at least two letters.
bool ends_with(const std::string& word, const std::string& tail) {
  return word.size() >= 4 && word.size() >= tail.size() + 2 &&
         word.compare(word.size() - tail.size(), tail.size(), tail) == 0;
}

std::string replaced(std::string word, const std::string& from, const std::string& to) {
  if (const size_t at = word.find(from); at != std::string::npos) word.replace(at, from.size(), to);
  return word;
}

// Other ways to write the same word, likeliest first.
std::vector<std::string> spellings(const std::string& word) {
  std::vector<std::string> forms;
  const std::string british[] = {replaced(word, "gray", "grey"), replaced(word, "color", "colour"),
                                 replaced(word, "center", "centre"), replaced(word, "iz", "is")};
  for (const std::string& form : british)
    if (form != word) forms.push_back(form);
  forms.push_back(word);
  if (word.size() < 3) return forms;  // "as" is not the plural of "a"
  for (size_t i = 0, n = forms.size(); i < n; ++i) {
    const std::string form = forms[i];
    if (ends_with(form, "ies")) forms.push_back(form.substr(0, form.size() - 3) + "y");
    if (ends_with(form, "es")) forms.push_back(form.substr(0, form.size() - 2));
    if (ends_with(form, "s")) forms.push_back(form.substr(0, form.size() - 1));
    if (ends_with(form, "y")) forms.push_back(form.substr(0, form.size() - 1) + "ies");
    forms.push_back(form + "s");
    forms.push_back(form + "es");
  }
  return forms;
}

}  // namespace

std::vector<std::string> tokenize(const std::string& text) {
  // The typographic apostrophe is three bytes.
  std::string plain = text;
  for (size_t at; (at = plain.find("\xe2\x80\x99")) != std::string::npos;) plain.erase(at, 3);
  std::vector<std::string> words;
  std::string word;
  for (const char c : plain + " ") {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\'') continue;
    if (byte >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z')) {
      word += c;
    } else if (c >= 'A' && c <= 'Z') {
      word += static_cast<char>(c - 'A' + 'a');
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  return words;
}

Vocabulary::Vocabulary(std::vector<std::string> words) : words_(std::move(words)) {
  for (const std::string& word : words_) {
    check(tokenize(word) == std::vector<std::string>{word}, "vocabulary: \"", word,
          "\" is not one plain word");
    check(ids_.emplace(word, kFirstWord + static_cast<int64_t>(ids_.size())).second, "vocabulary: \"", word,
          "\" stands twice");
  }
}

Vocabulary Vocabulary::from_json(const nlohmann::json& list, const std::string& source) {
  check(list.is_array(), source, ": the vocabulary must be a list of words");
  std::vector<std::string> words;
  for (const auto& entry : list) {
    check(entry.is_string(), source, ": the vocabulary holds ", entry.dump(), ", which is not a word");
    words.push_back(entry.get<std::string>());
  }
  return Vocabulary(std::move(words));
}

int64_t Vocabulary::id(const std::string& word) const {
  if (const auto it = ids_.find(word); it != ids_.end()) return it->second;
  for (const std::string& form : spellings(word))
    if (const auto it = ids_.find(form); it != ids_.end()) return it->second;
  return -1;
}

Encoding Vocabulary::encode(const std::string& text) const {
  Encoding encoding;
  for (const std::string& word : tokenize(text)) {
    if (const int64_t known = id(word); known >= 0) {
      encoding.ids.push_back(known);
    } else if (std::find(encoding.unknown.begin(), encoding.unknown.end(), word) == encoding.unknown.end()) {
      encoding.unknown.push_back(word);
    }
  }
  return encoding;
}

Tensor Vocabulary::encode_batch(const std::vector<std::string>& texts, int64_t length) const {
  check(length > 0, "vocabulary: cannot encode into ", length, " places");
  Tensor batch = full({static_cast<int64_t>(texts.size()), length}, kPadding, DType::i64);
  int64_t* row = batch.data<int64_t>();
  for (const std::string& text : texts) {
    std::vector<int64_t> ids = encode(text).ids;
    if (ids.empty()) ids.push_back(kNull);
    std::copy_n(ids.begin(), std::min<int64_t>(length, ids.size()), row);
    row += length;
  }
  return batch;
}

}  // namespace rivulet
