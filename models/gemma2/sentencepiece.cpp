// SentencePiece's .model: a protocol-buffer message. Field numbers are those of sentencepiece_model.proto.
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>

#include "models/gemma2/tokenizer.h"
#include "tensor/error.h"
#include "tensor/safetensors.h"

namespace rivulet {
namespace {

// The fields of one message, one after the other. A message within is a field of bytes.
class Message {
 public:
  Message(std::string_view bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  int field = 0;
  uint64_t number = 0;     // of a varint or of four or eight bytes
  std::string_view bytes;  // of a field with a length

  bool next() {
    number = 0;
    bytes = {};
    if (bytes_.empty()) return false;
    const uint64_t key = varint();
    field = int(key >> 3);
    switch (key & 7) {
      case 0:
        number = varint();
        break;
      case 1:
        number = fixed(8);
        break;
      case 2:
        bytes = take(varint());
        break;
      case 5:
        number = fixed(4);
        break;
      default:
        fail(path_, ": not a SentencePiece model (a field of kind ", key & 7, ")");
    }
    return true;
  }

 private:
  std::string_view take(uint64_t n) {
    check(n <= bytes_.size(), path_, ": not a SentencePiece model, or cut short");
    const std::string_view front = bytes_.substr(0, size_t(n));
    bytes_.remove_prefix(size_t(n));
    return front;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = uint8_t(take(1)[0]);
      value |= uint64_t(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    fail(path_, ": not a SentencePiece model (a number of more than ten bytes)");
  }
  uint64_t fixed(size_t n) {
    uint64_t value = 0;
    std::memcpy(&value, take(n).data(), n);
    return value;
  }

  std::string_view bytes_;
  const std::string& path_;
};

enum Kind : uint64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct Piece {
  std::string text;
  float score = 0;
  uint64_t kind = kNormal;
};

Piece read_piece(std::string_view bytes, const std::string& path) {
  Piece p;
  for (Message m(bytes, path); m.next();) {
    if (m.field == 1) p.text = m.bytes;
    if (m.field == 2) std::memcpy(&p.score, &m.number, sizeof p.score);
    if (m.field == 3) p.kind = m.number;
  }
  return p;
}

void check_trainer(std::string_view bytes, const std::string& path) {
  uint64_t kind = 1, suffix = 0;
  for (Message m(bytes, path); m.next();) {
    if (m.field == 3) kind = m.number;
    if (m.field == 24) suffix = m.number;
  }
  check(kind == 2, path, ": not a model of byte-pair merges (model_type is ", kind, ", wanted 2)");
  check(suffix == 0, path, ": spaces as suffixes are not supported");
}

void check_normalizer(std::string_view bytes, const std::string& path) {
  std::string name;
  bool dummy_prefix = true, remove_spaces = true, escape = true, maps = false;
  for (Message m(bytes, path); m.next();) {
    if (m.field == 1) name = m.bytes;
    if (m.field == 2) maps = !m.bytes.empty();
    if (m.field == 3) dummy_prefix = m.number;
    if (m.field == 4) remove_spaces = m.number;
    if (m.field == 5) escape = m.number;
  }
  check(!maps && !dummy_prefix && !remove_spaces && escape, path, ": the normaliser '", name,
        "' changes more than spaces; Gemma's does not");
}

size_t code_point_end(const std::string& text, size_t at) {
  do ++at;
  while (at < text.size() && (uint8_t(text[at]) & 0xc0) == 0x80);
  return at;
}

}  // namespace

void Tokenizer::read_model(const std::string& path) {
  const std::string file = read_file(path);
  check(!file.empty(), path, ": the file is empty");
  std::vector<Piece> pieces;
  bool trained = false, normalised = false;
  for (Message m(file, path); m.next();) {
    if (m.field == 1) pieces.push_back(read_piece(m.bytes, path));
    if (m.field == 2) check_trainer(m.bytes, path);
    if (m.field == 3) check_normalizer(m.bytes, path);
    trained |= m.field == 2;
    normalised |= m.field == 3;
  }
  check(!pieces.empty() && trained && normalised, path, ": not a SentencePiece model");

  spaces_first_ = true;
  std::map<float, int64_t, std::greater<>> ranks;  // of scores, the highest first
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [text, score, kind] = pieces[i];
    const int64_t id = int64_t(i);
    check(kind >= kNormal && kind <= kByte && kind != kUnused, path, ": the piece '", text, "' is of kind ",
          kind);
    set_piece(id, text, path);
    control_[i] = kind == kControl || kind == kUnknown;
    if (kind == kUserDefined) added_[text] = id;
    if (kind == kNormal) ranks[score] = 0;
    if (kind == kNormal || kind == kByte) ids_[text] = id;
  }
  int64_t rank = 0;
  for (auto& [score, place] : ranks) place = rank++;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [text, score, kind] = pieces[i];
    if (kind != kNormal) continue;
    for (size_t at = code_point_end(text, 0); at < text.size(); at = code_point_end(text, at)) {
      const int64_t left = id_of(text.substr(0, at)), right = id_of(text.substr(at));
      if (left >= 0 && right >= 0) add_merge(left, right, {ranks[score], int64_t(i)});
    }
  }
}

}  // namespace rivulet
