// The session as a state machine: no sockets, no threads, a clock of its own.
#include <doctest/doctest.h>

#include "apps/serve/session.h"

using namespace rivulet;
using namespace rivulet::serve;

namespace {

struct Recorded : EditControl {
  std::vector<std::string> calls;
  std::vector<uint32_t> frames;
  Settings settings;
  void begin(int64_t number) override { calls.push_back("begin " + std::to_string(number)); }
  void frame(SourceFrame f) override { frames.push_back(f.header.sequence); }
  void instruct(const Instruct& i) override { calls.push_back(i.text + (i.keep_memory ? "" : ", anew")); }
  void apply(const Settings& s) override { settings = s; }
  void protect(std::vector<Region> r) override { calls.push_back("protect " + std::to_string(r.size())); }
  void reset() override { calls.push_back("reset"); }
  void end() override { calls.push_back("end"); }
};

struct Room {
  Recorded control;
  Ledger ledger;
  Session session;
  double now = 10;
  explicit Room(SessionInfo info = {"brook", {256, 144}, 3, 0.8, {"make it night"}, {}})
      : session(std::move(info), control, ledger) {}

  Outs join(ClientId id, const char* role, const std::string& token = "") {
    session.connected(id, now);
    nlohmann::json h = {{"type", "hello"}, {"version", 1}, {"role", role}};
    if (!token.empty()) h["token"] = token;
    return say(id, h);
  }
  Outs say(ClientId id, const nlohmann::json& m) { return session.text(id, m.dump(), now); }
  Outs show(ClientId id, uint32_t sequence) {
    return session.picture(
        id, std::make_shared<const std::string>(picture_message({PictureKind::frame, 0, sequence, 5}, "x")),
        now);
  }
};

nlohmann::json json_of(const Out& out) { return nlohmann::json::parse(*out.message); }
bool closes(const Outs& outs, ClientId id) {
  for (const Out& o : outs)
    if (o.kind == Out::Kind::close && o.to == id) return true;
  return false;
}

}  // namespace

TEST_CASE("session: an editor is welcomed and told what is in force") {
  Room room;
  const Outs outs = room.join(1, "edit");
  REQUIRE(outs.size() == 2);
  CHECK(json_of(outs[0]).at("type") == "welcome");
  CHECK(json_of(outs[0]).at("size") == nlohmann::json({256, 144}));
  CHECK(json_of(outs[0]).at("examples").size() == 1);
  CHECK(json_of(outs[1]).at("editing") == true);
  CHECK(json_of(outs[1]).at("strength") == 0.8);  // the safeguards' most
  CHECK(room.control.calls == std::vector<std::string>{"begin 1"});
  CHECK(room.control.settings.strength == 0.8);
}

TEST_CASE("session: what the editor asks for is passed on, and everyone is told") {
  Room room;
  room.join(1, "edit");
  room.join(2, "watch");
  room.say(1, {{"type", "instruct"}, {"text", "make it night"}, {"keep_memory", false}});
  room.say(1, {{"type", "reset"}});
  const Outs told = room.say(1, {{"type", "settings"}, {"strength", 1}, {"seed", 7}, {"steps", 2}});
  CHECK(told.size() == 2);
  CHECK(json_of(told[1]).at("seed") == 7);
  CHECK(room.control.settings.strength == 0.8);
  CHECK(room.say(1, {{"type", "protect"}, {"regions", {{0, 0, 0.5, 0.5}}}}).size() == 2);
  CHECK(room.control.calls ==
        std::vector<std::string>{"begin 1", "make it night, anew", "reset", "protect 1"});
  const Outs state = room.session.event(1, Instructed{"make it night"}, room.now);
  REQUIRE(state.size() == 2);
  CHECK(json_of(state[1]).at("instruction") == "make it night");
  const Outs refused = room.session.event(1, InstructionRefused{"violence/x", "No."}, room.now);
  REQUIRE(refused.size() == 1);  // the editor's alone
  CHECK(refused[0].to == 1);
  CHECK(json_of(refused[0]).at("code") == "violence/x");
  CHECK(room.session.event(1, Notice{"fallback", "Black."}, room.now).size() == 2);
}

TEST_CASE("session: one editor, who makes room when gone") {
  Room room;
  room.join(1, "edit");
  const Outs outs = room.join(2, "edit");
  CHECK(json_of(outs.at(0)).at("code") == "taken");
  CHECK(closes(outs, 2));
  room.session.gone(2);
  room.join(3, "watch");
  const Outs left = room.session.gone(1);
  REQUIRE(left.size() == 1);
  CHECK(json_of(left[0]).at("editing") == false);
  CHECK_FALSE(room.session.editing());
  CHECK(json_of(room.join(4, "edit").at(0)).at("type") == "welcome");
  CHECK(room.control.calls == std::vector<std::string>{"begin 1", "end", "begin 2"});
  // What the first editing still had in hand is nobody's.
  CHECK(room.session.event(1, Instructed{"late"}, room.now).empty());
}

TEST_CASE("session: viewers only listen") {
  Room room;
  room.join(1, "edit");
  room.join(2, "watch");
  CHECK(json_of(room.say(2, {{"type", "reset"}}).at(0)).at("type") == "refused");
  CHECK(json_of(room.show(2, 1).at(0)).at("type") == "refused");
  CHECK(room.control.frames.empty());
  EditedChunk chunk;
  const auto picture = std::make_shared<const std::string>("picture");
  chunk.frames = {{picture, picture}};
  const Outs outs = room.session.event(1, chunk, room.now);
  CHECK(outs.size() == 3);  // the edit to both, the source to the viewer
  for (ClientId id = 10; id < 10 + kMaxViewers - 1; ++id) CHECK_FALSE(closes(room.join(id, "watch"), id));
  CHECK(json_of(room.join(99, "watch").at(0)).at("code") == "full");
}

TEST_CASE("session: frames must follow one another, and no faster than the limit") {
  Room room;
  room.join(1, "edit");
  for (uint32_t n = 1; n <= 100; ++n) room.show(1, n);
  CHECK(room.control.frames.size() == 60);
  room.now += 1;
  CHECK(json_of(room.show(1, 60).at(0)).at("type") == "refused");  // was there already
  CHECK(room.show(1, 101).empty());
  CHECK(room.control.frames.back() == 101);
}

TEST_CASE("session: silence, noise and faults end a connection") {
  Room room;
  room.session.connected(1, room.now);
  CHECK(room.session.tick(room.now + 4.9).empty());
  CHECK(closes(room.session.tick(room.now + 5.1), 1));
  CHECK(json_of(room.say(1, {{"type", "reset"}}).at(0)).at("text").get<std::string>().find("hello") !=
        std::string::npos);
  room.join(2, "watch");
  bool closed = false;
  for (int i = 0; i < 11; ++i) closed = closes(room.session.text(2, "{", room.now), 2);
  CHECK(closed);
  room.join(3, "edit");
  closed = false;
  for (int i = 0; i < 61; ++i) closed = closes(room.say(3, {{"type", "reset"}}), 3);
  CHECK(closed);
}

TEST_CASE("session: a token is asked of everyone where there is one") {
  Room room({"brook", {256, 144}, 3, 1, {}, "0123456789abcdef"});
  const Outs wrong = room.join(1, "edit", "0123456789abcdee");
  CHECK(json_of(wrong.at(0)).at("code") == "token");
  CHECK(closes(wrong, 1));
  CHECK(json_of(room.join(2, "watch").at(0)).at("code") == "token");
  CHECK(json_of(room.join(3, "edit", "0123456789abcdef").at(0)).at("type") == "welcome");
}
