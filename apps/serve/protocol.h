// The messages of a live session, over one WebSocket at /live. Text messages are JSON objects with a "type";
// binary messages are pictures. Everything a client sends is parsed here and nowhere else: what comes out is
// within the limits of limits.h, and whatever is not throws an Error with one sentence for the sender.
//
// Client to server, text (a field in brackets may be left out):
//   {"type": "hello", "version": 1, "role": "edit" | "watch", ["token": "..."]}   first, within five seconds
//   {"type": "instruct", "text": "...", ["keep_memory": true]}   from the next chunk on
//   {"type": "settings", ["strength": 0..1], ["seed": 0..2^53-1], ["steps": 1..8]}
//   {"type": "protect", "regions": [[x, y, width, height], ...]}  parts of the picture, 0..1, left unedited
//   {"type": "reset"}                                            forget the stream so far
//   {"type": "shown", "latency_ms": [..], ["skipped": n]}        capture to screen, of the frames just shown
// Client to server, binary: kind 1, a frame.
//
// Server to client, text: "welcome" (role, model, size, limits), "state" (instruction and settings in force),
// "ledger" (ledger.h), "notice" (code, text: something the person should read), "refused" (code, text; with
// "about": "instruct" or "hello"). After a refused hello the connection is closed.
// Server to client, binary: kind 2, an edited frame; kind 3, the source of it (viewers only).
//
// A picture: 16 bytes of header, little-endian, then a baseline JPEG.
//   0 u8  kind     1 u8 flags (1: the source is shown instead of the edit)     2 u16 zero
//   4 u32 sequence, rising from frame to frame     8 u64 captured: microseconds on the sender's clock, given
//   back unchanged with the edit
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "apps/serve/limits.h"

namespace rivulet::serve {

inline constexpr int64_t kProtocolVersion = 1;
inline constexpr size_t kPictureHeader = 16;

enum class Role { editor, viewer };

struct Hello {
  Role role = Role::viewer;
  std::string token;
};
struct Instruct {
  std::string text;
  bool keep_memory = true;
};
struct Settings {
  std::optional<double> strength;
  std::optional<uint64_t> seed;
  std::optional<int64_t> steps;
};
// Fractions of the width and height of the picture.
struct Region {
  double x = 0, y = 0, width = 0, height = 0;
};
struct Protect {
  std::vector<Region> regions;
};
struct Reset {};
struct Shown {
  std::vector<double> latency_ms;
  int64_t skipped = 0;
};
using ClientMessage = std::variant<Hello, Instruct, Settings, Protect, Reset, Shown>;

ClientMessage parse_text(std::string_view text);

enum class PictureKind : uint8_t { frame = 1, edited = 2, source = 3 };
inline constexpr uint8_t kShowsSource = 1;

struct PictureHeader {
  PictureKind kind = PictureKind::frame;
  uint8_t flags = 0;
  uint32_t sequence = 0;
  uint64_t captured_us = 0;
};

struct Picture {
  PictureHeader header;
  std::string_view jpeg;  // a part of the message
};

// A frame of a client.
Picture parse_frame(std::string_view message);
// Any picture: what a client of the server reads.
Picture parse_picture(std::string_view message);
std::string picture_message(const PictureHeader& header, std::string_view jpeg);

// Messages of the server that are more than their fields.
std::string notice_message(const std::string& code, const std::string& text);
std::string refused_message(const std::string& about, const std::string& code, const std::string& text);

}  // namespace rivulet::serve
