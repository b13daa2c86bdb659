// Gemma's tokenizer against the programs that its two containers come from, against a plain merge loop, and
// on files that are not what they should be.
#include <doctest/doctest.h>

#include <cstdio>

#include "models/gemma2/prompt.h"
#include "models/gemma2/tokenizer.h"
#include "nn/config.h"
#include "ops/elementwise.h"
#include "tests/fixtures.h"

using namespace rivulet;

namespace {

const std::string kData = std::string(RIVULET_SOURCE_DIR) + "/tests/data/tokenizer_small";

std::string error_of(const std::string& path) {
  try {
    Tokenizer::load(path);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

void says(const std::string& text, const std::string& part) {
  CAPTURE(text);
  CAPTURE(part);
  CHECK(text.find(part) != std::string::npos);
}

// Steps 1 to 4 of tokenizer.h in their plainest form: the lowest rank is looked for again after every merge.
class PlainBpe {
 public:
  explicit PlainBpe(const Json& file) : vocabulary_(file["model"]["vocab"]) {
    for (const Json& merge : file["model"]["merges"]) merges_.push_back(merge);
    for (const Json& token : file["added_tokens"]) added_[token["content"]] = token["id"];
  }
  std::vector<int64_t> encode(const std::string& text) const {
    std::vector<int64_t> ids;
    std::string rest;
    for (size_t at = 0; at < text.size();) {
      std::string token;
      for (const auto& [content, id] : added_)
        if (text.compare(at, content.size(), content) == 0 && content.size() > token.size()) token = content;
      if (token.empty()) {
        rest += text[at++];
        continue;
      }
      merge(rest, ids);
      rest.clear();
      ids.push_back(added_.at(token));
      at += token.size();
    }
    merge(rest, ids);
    return ids;
  }

 private:
  void merge(const std::string& text, std::vector<int64_t>& ids) const {
    std::vector<std::string> symbols;
    for (size_t at = 0; at < text.size();) {
      size_t end = at + 1;
      while (end < text.size() && (text[end] & 0xc0) == 0x80) ++end;
      const std::string c = text[at] == ' ' ? "\u2581" : text.substr(at, end - at);
      if (vocabulary_.contains(c)) symbols.push_back(c);
      for (size_t i = at; i < end && !vocabulary_.contains(c); ++i) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", unsigned(uint8_t(text[i])));
        symbols.push_back(name);
      }
      at = end;
    }
    for (;;) {
      size_t best = merges_.size(), place = 0;
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto rank = std::find(merges_.begin(), merges_.end(), symbols[i] + " " + symbols[i + 1]);
        if (size_t(rank - merges_.begin()) >= best) continue;
        best = size_t(rank - merges_.begin());
        place = i;
      }
      if (best == merges_.size()) break;
      symbols[place] += symbols[place + 1];
      symbols.erase(symbols.begin() + int64_t(place) + 1);
    }
    for (const std::string& s : symbols) ids.push_back(vocabulary_.at(s).get<int64_t>());
  }

  Json vocabulary_;
  std::vector<std::string> merges_;
  std::map<std::string, int64_t> added_;
};

}  // namespace

TEST_CASE("the ids of SentencePiece and of tokenizers.js") {
  const Tokenizer model = Tokenizer::load(kData + ".model"), json = Tokenizer::load(kData + ".json");
  CHECK(model.size() == 900);
  CHECK(json.size() == 900);
  const Json rows = read_json(kData + "_ids.json");
  REQUIRE(rows.size() == 52);
  for (const Json& row : rows) {
    const auto text = row.at("text").get<std::string>();
    CAPTURE(text);
    CHECK(model.encode(text) == row.at("sentencepiece").get<std::vector<int64_t>>());
    CHECK(json.encode(text) == row.at("tokenizers").get<std::vector<int64_t>>());
    CHECK(json.decode(json.encode(text)).size() <= text.size());
    // A mark in the text itself comes back as the space that it stands for.
    if (text.find("\u2581") == std::string::npos) CHECK(model.decode(model.encode(text)) == text);
  }
}

TEST_CASE("random texts against a plain merge loop") {
  const Tokenizer tokenizer = Tokenizer::load(kData + ".json");
  const PlainBpe plain(read_json(kData + ".json"));
  const std::vector<std::string> parts = {"th", "e ", " ",  "a",   "r",    "i", "ng", "c", "lo",
                                          "ur", "at", "er", "q",   "0",    "7", "-",  "/", "é",
                                          "夜", "🎉",  "\n", "<b>", "</b>", "s", "t"};
  Rng rng{5};
  for (int i = 0; i < 40; ++i) {
    std::string text;
    for (int64_t n = int64_t(rng.uniform() * 40); n > 0; --n)
      text += parts[size_t(rng.uniform() * double(parts.size()))];
    CAPTURE(text);
    CHECK(tokenizer.encode(text, false) == plain.encode(text));
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("merges by rank: the leftmost of equals, and again what a merge makes possible") {
  const Tokenizer t = Tokenizer::load(kData + ".json");
  const auto pieces = [&](const std::string& text) {
    std::string out;
    for (const int64_t id : t.encode(text, false)) out += "|" + t.piece(id);
    return out;
  };
  // The merges begin with ▁ ▁, ▁ ▁▁, ▁▁ ▁, ▁▁ ▁▁: the two pairs come first, then the third space joins the
  // second.
  CHECK(pieces("     ") == "|▁▁|▁▁▁");
  CHECK(pieces("watercolour") == "|watercolour");
  CHECK(pieces("é🎉") == "|é|<0xF0>|<0x9F>|<0x8E>|<0x89>");
  CHECK(pieces("<b>12</b>") == "|<b>|1|2|</b>");
}

TEST_CASE("a text that is not UTF-8") {
  const Tokenizer t = Tokenizer::load(kData + ".json");
  for (const std::string bad : {"ab\xff", "\xc0\x80", "\xed\xa0\x80", "\xe2\x96"}) {
    std::string said = "no error";
    try {
      t.encode(bad);
    } catch (const Error& e) {
      said = e.what();
    }
    says(said, "not UTF-8 at byte");
  }
}

TEST_CASE("files that are not a tokenizer of this kind") {
  const TempDir dir;
  const std::string path = dir / "tokenizer.json";
  const Json good = read_json(kData + ".json");
  const auto with = [&](const std::string& pointer, const Json& value) {
    Json j = good;
    j[Json::json_pointer(pointer)] = value;
    write_file(path, j.dump());
    return error_of(path);
  };
  says(with("/model/merges", Json::array()), "model.merges is missing or empty");
  Json cut = good["model"]["merges"];
  cut.erase(cut.begin() + int64_t(cut.size() / 2), cut.end());
  says(with("/model/merges", cut), "merges are missing: none of them makes");
  says(with("/model/merges", Json{"nosuchpiece x"}), "needs the piece 'nosuchpiece'");
  says(with("/model/merges", Json{"one"}), "wanted two pieces");
  says(with("/model/type", "Unigram"), "model.type is 'Unigram'");
  says(with("/model/byte_fallback", false), "byte_fallback is off");
  says(with("/normalizer", {{"type", "NFKC"}}), "the normalizer is");
  says(with("/pre_tokenizer", {{"type", "ByteLevel"}}), "the pre_tokenizer is");
  says(with("/added_tokens/0/lstrip", true), "has lstrip");
  says(with("/model/vocab/the", 17), "the id 17 stands for");
  says(with("/added_tokens", Json{1}), path);
  Json without = good;
  without["model"].erase("merges");
  write_file(path, without.dump());
  says(error_of(path), "model.merges is missing");
  without = good;
  without["model"]["vocab"].erase("<0xE9>");
  write_file(path, without.dump());
  says(error_of(path), "the vocabulary has no <0xE9>");
  write_file(path, "");
  says(error_of(path), path);

  // A list of pairs instead of words with a space between is the newer form of the same.
  Json pairs = good;
  for (Json& merge : pairs["model"]["merges"]) {
    const auto words = merge.get<std::string>();
    merge = {words.substr(0, words.find(' ')), words.substr(words.find(' ') + 1)};
  }
  write_file(path, pairs.dump());
  const std::string text = "turn this street into a painting";
  CHECK(Tokenizer::load(path).encode(text) == Tokenizer::load(kData + ".json").encode(text));
}

TEST_CASE("SentencePiece files that are cut, empty or something else") {
  const TempDir dir;
  const std::string path = dir / "tokenizer.model", good = read_file(kData + ".model");
  write_file(path, "");
  says(error_of(path), "the file is empty");
  for (const size_t length : {size_t(7), good.size() / 3, good.size() / 2, good.size() - 5}) {
    write_file(path, good.substr(0, length));
    says(error_of(path), "not a SentencePiece model");
  }
  write_file(path, "{\"model\": 1}");
  says(error_of(path), path);
  says(error_of(dir / "none.model"), "none.model");
  says(error_of(dir.path + "/x.txt"), "is a .json or a .model");
  std::filesystem::create_directory(dir / "folder.json");
  says(error_of(dir / "folder.json"), "holds neither tokenizer.json nor tokenizer.model");
}

TEST_CASE("an instruction's tokens: prefix, own words, at most so many") {
  const Tokenizer t = Tokenizer::load(kData + ".json");
  const PromptTemplate prompt{.prefix = t.encode("Write of this:"), .negative = {2}, .rows = 6};
  const auto tokens = instruction_tokens(prompt, t, " \n sky \t");
  CHECK(tokens.kept_from == int64_t(prompt.prefix.size()));
  // No piece has a space behind another character, so the whole text has the same tokens.
  CHECK(tokens.ids == t.encode("Write of this: sky"));
  const auto cut = instruction_tokens(prompt, t, "sky at night and snow and rain and rain");
  CHECK(int64_t(cut.ids.size()) == tokens.kept_from + prompt.rows - 1);
  CHECK_THROWS_AS(instruction_tokens(prompt, t, " \n"), Error);
  CHECK(plain_tokens(prompt, t, "").ids == std::vector<int64_t>{2});
  CHECK(plain_tokens(prompt, t, "sky at night and snow").ids.size() == 6);
  CHECK(plain_tokens(prompt, t, " sky ").ids == t.encode("sky"));

  // Row 0 is the first token, row r > 0 the r-th behind the prefix; the rest is zero and not real.
  const int64_t n = int64_t(tokens.ids.size());
  const auto [rows, mask] = kept_rows(prompt, tokens, (arange(n).to(DType::f32) + 1.0).reshape({1, n, 1}));
  CHECK(rows.shape() == Shape{1, 6, 1});
  const std::vector<double> first = rows.to_vector(), real = mask.to_vector();
  CHECK(first[0] == 1);
  for (int64_t r = 1; r < 6; ++r) {
    const int64_t at = tokens.kept_from + r - 1;
    CHECK(first[size_t(r)] == (at < n ? double(at + 1) : 0));
    CHECK(real[size_t(r)] == (at < n ? 1 : 0));
  }
}

TEST_CASE("the released vocabulary, where it is at hand: RIVULET_GEMMA names its folder") {
  const char* folder = std::getenv("RIVULET_GEMMA");
  if (folder == nullptr) {
    MESSAGE("skipped: RIVULET_GEMMA is not set");
    return;
  }
  const Tokenizer t = Tokenizer::load(folder);
  CHECK(t.size() == 256000);
  const PromptTemplate& prompt = released_prompt();
  REQUIRE(prompt.prefix.size() == 108);
  CHECK(t.encode("Hello  world\n\n\tfoo 123456") == std::vector<int64_t>{2, 4521, 139, 9097, 109, 226, 14214,
                                                                         235248, 235274, 235284, 235304,
                                                                         235310, 235308, 235318});
  CHECK(t.encode(t.decode(prompt.prefix)) == prompt.prefix);
  CHECK(t.encode(t.decode(prompt.negative)) == prompt.negative);
  const auto example = instruction_tokens(
      prompt, t, "Transform the entire scene into a breathtaking Sci-Fi Art digital painting.");
  REQUIRE(example.ids.size() == 122);
  CHECK(std::vector<int64_t>(example.ids.end() - 14, example.ids.end()) ==
        std::vector<int64_t>{35482, 573, 4805, 8089, 1280, 476, 79202, 8864, 235290, 9024, 5936, 6403, 11825,
                             235265});
}
