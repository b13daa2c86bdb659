// Fuzz target of everything a client can send: each input is a script of messages that are given to a session
// as if two clients sent them, and pictures go on through the JPEG decoder. Built by tests/fuzz/run.
//
// A script: messages one after the other, each with 3 bytes in front: client and kind (bit 0 the client, bit
// 1 a picture, bit 2 a second passes), then the length, little-endian.
#include <cstdlib>

#include "apps/serve/jpeg.h"
#include "apps/serve/session.h"

using namespace rivulet;
using namespace rivulet::serve;

namespace {

struct Decoder : EditControl {
  JpegCodec codec;
  int64_t last = 0;
  bool running = false;
  static void must(bool ok) {
    if (!ok) std::abort();
  }
  void begin(int64_t number) override {
    must(!running && number == last + 1);
    last = number;
    running = true;
  }
  void frame(SourceFrame f) override {
    must(running && f.message->size() <= size_t(kMaxMessageBytes));
    try {
      const Tensor frame = codec.decode(f.jpeg(), {32, 32});
      must(frame.dim(1) <= kMaxFrameSide && frame.dim(2) <= kMaxFrameSide);
    } catch (const Error&) {
      // A damaged picture is the client's.
    }
  }
  void instruct(const Instruct& i) override {
    must(running && int64_t(i.text.size()) <= kMaxInstructionBytes);
  }
  void apply(const Settings& s) override {
    must(running);
    must(!s.strength || (*s.strength >= 0 && *s.strength <= 1));
    must(!s.steps || (*s.steps >= 1 && *s.steps <= kMaxSteps));
  }
  void protect(std::vector<Region> regions) override {
    must(running && int64_t(regions.size()) <= kMaxProtectedRegions);
    for (const Region& r : regions)
      for (double side : {r.x, r.y, r.width, r.height}) must(side >= 0 && side <= 1);
  }
  void reset() override { must(running); }
  void end() override {
    must(running);
    running = false;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Decoder control;
  Ledger ledger;
  Session session({"fuzz", {256, 144}, 3, 1, {}, {}}, control, ledger);
  double now = 1;
  bool there[2] = {};
  for (size_t at = 0; at + 3 <= size;) {
    const size_t length = std::min<size_t>(size_t(data[at + 1]) | size_t(data[at + 2]) << 8, size - at - 3);
    const int flags = data[at], who = flags & 1;
    const std::string message(reinterpret_cast<const char*>(data) + at + 3, length);
    at += 3 + length;
    if (!there[who]) session.connected(who + 1, now), there[who] = true;
    const Outs outs = flags & 2 ? session.picture(who + 1, std::make_shared<const std::string>(message), now)
                                : session.text(who + 1, message, now);
    for (const Out& out : outs)
      if (out.kind == Out::Kind::close && there[out.to - 1]) session.gone(out.to), there[out.to - 1] = false;
    if (flags & 4) {
      now += 1;
      session.tick(now);
    }
  }
  for (ClientId id : {1, 2})
    if (there[id - 1]) session.gone(id);
  if (session.clients() != 0 || session.editing() || control.running) std::abort();
  return 0;
}
