// From text to ids: byte-pair merges over code points, as Gemma's vocabulary wants it (vae_text.md 5.3).
//
//   1. Added tokens are cut out of the text first, the longest that fits at each place.
//   2. In what lies between, every space becomes U+2581. Nothing else is changed or cut.
//   3. Each code point is a symbol; one that the vocabulary does not have becomes its UTF-8 bytes.
//   4. The adjacent pair with the lowest rank is merged, the leftmost among equals, until no pair has one.
//
// Two published containers are read: tokenizer.json (ranks are the order of its merges) and SentencePiece's
// .model (a pair's rank is the score of the piece it makes; added tokens are looked for after step 2).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace rivulet {

class Tokenizer {
 public:
  // A file whose name ends in .json or .model, or a folder that holds tokenizer.json or tokenizer.model (the
  // first is preferred). Throws on anything that this class would tokenise differently than the file's
  // author: another kind of model, another normaliser, tokens that take in neighbouring spaces, merges that
  // are missing.
  static Tokenizer load(const std::string& path);

  // Throws when the text is not UTF-8. The id that opens a text (<bos>) is put in front when asked for.
  std::vector<int64_t> encode(std::string_view text, bool open = true) const;
  // The text that these ids stand for; control tokens (<bos>, ...) and ids outside the vocabulary give
  // nothing.
  std::string decode(const std::vector<int64_t>& ids) const;

  int64_t size() const { return int64_t(pieces_.size()); }
  int64_t opening_id() const { return open_; }
  // The piece of an id; empty outside the vocabulary.
  const std::string& piece(int64_t id) const;

 private:
  struct Merge {
    int64_t rank, id;
  };

  void read_json(const std::string& path);
  void read_model(const std::string& path);
  void set_piece(int64_t id, const std::string& text, const std::string& path);
  void add_merge(int64_t left, int64_t right, Merge merge);
  void finish(const std::string& path);
  int64_t id_of(const std::string& piece) const;  // -1 when absent
  void append_symbols(std::string_view code_point, std::vector<int64_t>& symbols) const;
  void append_merged(std::string_view text, std::vector<int64_t>& ids) const;
  const Merge* find_merge(int64_t left, int64_t right) const;

  std::vector<std::string> pieces_;
  std::vector<bool> control_, byte_;                // per id
  std::unordered_map<std::string, int64_t> ids_;    // of pieces that text may give
  std::unordered_map<std::string, int64_t> added_;  // of tokens that are cut out first
  std::unordered_map<uint64_t, Merge> merges_;      // by left << 32 | right
  std::vector<int64_t> bytes_;                      // ids of <0x00> .. <0xFF>, -1 when absent
  size_t longest_added_ = 0;
  bool spaces_first_ = false;  // step 2 before step 1
  int64_t open_ = -1;
};

}  // namespace rivulet
