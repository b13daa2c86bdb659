#include "models/gemma2/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <queue>

#include "nn/config.h"
#include "tensor/error.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

const std::string kSpaceMark = "\u2581";

std::string byte_piece(int byte) {
  char name[8];
  std::snprintf(name, sizeof name, "<0x%02X>", unsigned(byte));
  return name;
}

// Bytes of the code point that starts at `at`; 0 when none does. Overlong forms and surrogates are refused.
size_t code_point_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? uint8_t(text[at + i]) : uint8_t(0); };
  const uint8_t first = byte(0), second = byte(1);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
      (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f))
    return 0;
  return length;
}

std::string with_space_marks(std::string_view text) {
  std::string out;
  for (const char c : text) c == ' ' ? out += kSpaceMark : out += c;
  return out;
}

uint64_t pair_key(int64_t left, int64_t right) { return uint64_t(left) << 32 | uint64_t(right); }

bool is_replace_space(const Json& normalizer) {
  return normalizer.value("type", "") == "Replace" && normalizer.contains("pattern") &&
         normalizer.at("pattern") == Json{{"String", " "}} && normalizer.value("content", "") == kSpaceMark;
}

// Splitting at spaces has no effect behind a normaliser that leaves none.
bool is_split_at_spaces(const Json& split) {
  return split.value("type", "") == "Split" && split.contains("pattern") &&
         split.at("pattern") == Json{{"String", " "}};
}

}  // namespace

Tokenizer Tokenizer::load(const std::string& path) {
  std::string file = path;
  if (fs::is_directory(path)) {
    file = path + "/tokenizer.json";
    if (!fs::exists(file)) file = path + "/tokenizer.model";
    check(fs::exists(file), path, ": holds neither tokenizer.json nor tokenizer.model");
  }
  Tokenizer t;
  const std::string kind = fs::path(file).extension();
  check(kind == ".json" || kind == ".model", file, ": a tokenizer is a .json or a .model");
  kind == ".json" ? t.read_json(file) : t.read_model(file);
  t.finish(file);
  return t;
}

void Tokenizer::set_piece(int64_t id, const std::string& text, const std::string& path) {
  check(id >= 0 && id < 1 << 24, path, ": the piece '", text, "' has the id ", id);
  if (id >= size()) {
    pieces_.resize(size_t(id) + 1);
    control_.resize(size_t(id) + 1);
  }
  std::string& piece = pieces_[size_t(id)];
  check(piece.empty() || piece == text, path, ": the id ", id, " stands for '", piece, "' and for '", text,
        "'");
  check(!text.empty(), path, ": the piece of id ", id, " is empty");
  piece = text;
}

void Tokenizer::add_merge(int64_t left, int64_t right, Merge merge) {
  merges_.try_emplace(pair_key(left, right), merge);  // of a pair that stands twice, the first rank counts
}

void Tokenizer::read_json(const std::string& path) try {
  const Json file = rivulet::read_json(path);
  const Json& model = file.at("model");
  check(model.value("type", "") == "BPE", path, ": model.type is '", model.value("type", ""),
        "', wanted 'BPE'");
  check(model.value("byte_fallback", false), path, ": model.byte_fallback is off, Gemma's is on");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix", "dropout"})
    check(!model.contains(affix) || model.at(affix).is_null(), path, ": model.", affix, " is not supported");
  check(is_replace_space(file.at("normalizer")), path, ": the normalizer is ", file.at("normalizer").dump(),
        ", wanted one that replaces spaces by U+2581");
  const Json split = file.value("pre_tokenizer", Json());
  check(split.is_null() || is_split_at_spaces(split), path, ": the pre_tokenizer is ", split.dump(),
        ", wanted none");

  ids_.reserve(model.at("vocab").size());
  for (const auto& [text, id] : model.at("vocab").items()) {
    set_piece(id.get<int64_t>(), text, path);
    ids_[text] = id.get<int64_t>();
  }
  for (const Json& token : file.at("added_tokens")) {
    const auto text = token.at("content").get<std::string>();
    for (const char* habit : {"single_word", "lstrip", "rstrip"})
      check(!token.value(habit, false), path, ": the added token '", text, "' has ", habit,
            ", which is not supported");
    const auto id = token.at("id").get<int64_t>();
    set_piece(id, text, path);
    added_[text] = id;
    control_[size_t(id)] = token.value("special", false);
  }

  check(model.contains("merges") && !model.at("merges").empty(), path, ": model.merges is missing or empty");
  merges_.reserve(model.at("merges").size());
  int64_t rank = 0;
  for (const Json& merge : model.at("merges")) {
    std::string left, right;
    if (merge.is_string()) {
      const auto both = merge.get<std::string>();
      const size_t space = both.find(' ');
      check(space != std::string::npos, path, ": merge ", rank, " is '", both, "', wanted two pieces");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      check(merge.is_array() && merge.size() == 2, path, ": merge ", rank, " is ", merge.dump(),
            ", wanted two pieces");
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    }
    const std::string merged = left + right;
    const int64_t ids[] = {id_of(left), id_of(right), id_of(merged)};
    for (int i = 0; i < 3; ++i)
      check(ids[i] >= 0, path, ": merge ", rank, " needs the piece '",
            i == 0   ? left
            : i == 1 ? right
                     : merged,
            "', which the vocabulary does not have");
    add_merge(ids[0], ids[1], {rank++, ids[2]});
  }
} catch (const Json::exception& e) {
  fail(path, ": ", e.what());
}

void Tokenizer::finish(const std::string& path) {
  bytes_.assign(256, -1);
  byte_.assign(pieces_.size(), false);
  for (int b = 0; b < 256; ++b) {
    int64_t& id = bytes_[size_t(b)];
    id = id_of(byte_piece(b));
    if (id >= 0) byte_[size_t(id)] = true;
    if (id < 0 && b < 0x80) id = id_of(std::string(1, char(b)));  // as the tab of the released vocabulary
    check(id >= 0, path, ": the vocabulary has no ", byte_piece(b), " for bytes of unknown characters");
  }
  for (const auto& [text, id] : added_) longest_added_ = std::max(longest_added_, text.size());
  const auto open = std::find(pieces_.begin(), pieces_.end(), "<bos>");
  check(open != pieces_.end(), path, ": the vocabulary has no <bos>");
  open_ = open - pieces_.begin();

  // A list of merges that was cut short leaves pieces that nothing can make. Two of the released vocabulary
  // are such by intent.
  constexpr int64_t kByIntent = 8;
  std::vector<bool> made(pieces_.size(), false);
  for (const auto& [pair, merge] : merges_) made[size_t(merge.id)] = true;
  int64_t orphans = 0, first = -1;
  for (int64_t id = 0; id < size(); ++id) {
    const std::string& p = pieces_[size_t(id)];
    if (p.empty() || control_[size_t(id)] || byte_[size_t(id)] || made[size_t(id)] || added_.count(p) ||
        code_point_length(p, 0) == p.size())
      continue;
    if (orphans++ == 0) first = id;
  }
  check(orphans <= kByIntent, path, ": merges are missing: none of them makes ", orphans,
        " pieces, the first is '", piece(first), "'");
}

int64_t Tokenizer::id_of(const std::string& piece) const {
  const auto at = ids_.find(piece);
  return at == ids_.end() ? -1 : at->second;
}

const std::string& Tokenizer::piece(int64_t id) const {
  static const std::string kNone;
  return id >= 0 && id < size() ? pieces_[size_t(id)] : kNone;
}

const Tokenizer::Merge* Tokenizer::find_merge(int64_t left, int64_t right) const {
  const auto at = merges_.find(pair_key(left, right));
  return at == merges_.end() ? nullptr : &at->second;
}

void Tokenizer::append_symbols(std::string_view code_point, std::vector<int64_t>& symbols) const {
  if (const int64_t id = id_of(std::string(code_point)); id >= 0) {
    symbols.push_back(id);
    return;
  }
  for (const char c : code_point) symbols.push_back(bytes_[uint8_t(c)]);
}

// The symbols form a linked list; a queue holds the pairs that may be merged. An entry whose pair has changed
// since is passed over.
void Tokenizer::append_merged(std::string_view text, std::vector<int64_t>& ids) const {
  std::vector<int64_t> symbols;
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    length = code_point_length(text, at);
    append_symbols(text.substr(at, length), symbols);
  }
  const int64_t n = int64_t(symbols.size());
  std::vector<int64_t> next(symbols.size()), previous(symbols.size());
  for (int64_t i = 0; i < n; ++i) {
    next[size_t(i)] = i + 1;
    previous[size_t(i)] = i - 1;
  }
  struct Candidate {
    int64_t rank, left, left_id, right_id, merged;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int64_t left) {
    if (left < 0 || next[size_t(left)] >= n) return;
    const int64_t a = symbols[size_t(left)], b = symbols[size_t(next[size_t(left)])];
    if (const Merge* m = find_merge(a, b)) queue.push({m->rank, left, a, b, m->id});
  };
  for (int64_t i = 0; i + 1 < n; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate c = queue.top();
    queue.pop();
    const int64_t right = next[size_t(c.left)];
    if (symbols[size_t(c.left)] != c.left_id || right >= n || symbols[size_t(right)] != c.right_id) continue;
    symbols[size_t(c.left)] = c.merged;
    symbols[size_t(right)] = -1;
    const int64_t after = next[size_t(c.left)] = next[size_t(right)];
    if (after < n) previous[size_t(after)] = c.left;
    offer(previous[size_t(c.left)]);
    offer(c.left);
  }
  for (const int64_t id : symbols)
    if (id >= 0) ids.push_back(id);
}

std::vector<int64_t> Tokenizer::encode(std::string_view given, bool open) const {
  for (size_t at = 0, length = 0; at < given.size(); at += length) {
    length = code_point_length(given, at);
    check(length > 0, "tokenizer: the text is not UTF-8 at byte ", at);
  }
  const std::string text = spaces_first_ ? with_space_marks(given) : std::string(given);
  std::vector<int64_t> ids;
  if (open) ids.push_back(open_);
  const auto flush = [&](size_t begin, size_t end) {
    const std::string_view part = std::string_view(text).substr(begin, end - begin);
    append_merged(spaces_first_ ? std::string(part) : with_space_marks(part), ids);
  };
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    size_t length = std::min(longest_added_, text.size() - at);
    auto token = added_.end();
    for (; length > 0 && token == added_.end(); --length) token = added_.find(text.substr(at, length));
    if (token == added_.end()) {
      ++at;
      continue;
    }
    flush(begin, at);
    ids.push_back(token->second);
    begin = at += token->first.size();
  }
  flush(begin, text.size());
  return ids;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids) const {
  std::string text;
  for (const int64_t id : ids) {
    const std::string& p = piece(id);
    if (p.empty() || control_[size_t(id)]) continue;
    if (byte_[size_t(id)]) {
      text += char(std::stoi(p.substr(3, 2), nullptr, 16));
      continue;
    }
    for (size_t at = 0; at < p.size();) {
      const bool mark = p.compare(at, kSpaceMark.size(), kSpaceMark) == 0;
      text += mark ? ' ' : p[at];
      at += mark ? kSpaceMark.size() : 1;
    }
  }
  return text;
}

}  // namespace rivulet
