// What comes out of the editing threads, for the session to pass on.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "apps/serve/ledger.h"
#include "apps/serve/protocol.h"

namespace rivulet::serve {

struct EditedFrame {
  std::shared_ptr<const std::string> edited;  // picture messages, ready to be sent
  std::shared_ptr<const std::string> source;
};
struct EditedChunk {
  std::vector<EditedFrame> frames;
  ChunkRow row;
};
// An instruction was taken in, or not.
struct Instructed {
  std::string text;
};
struct InstructionRefused {
  std::string code, reason;  // code: the rule of a safeguard, or "instruction"
};
struct Notice {
  std::string code, text;  // code: "fallback", "recovered", "source", "frame", "failure"
};
using Event = std::variant<EditedChunk, Instructed, InstructionRefused, Notice>;

}  // namespace rivulet::serve
