// The safeguards together: configuration, controls, the audit log, one stream, and `rivulet edit` under them.
#include <fstream>
#include <sstream>
#include <thread>

#include "apps/safeguards/digest.h"
#include "apps/safeguards/guard.h"
#include "apps/safeguards/regions.h"
#include "apps/video.h"
#include "tests/edit_fixtures.h"

using namespace rivulet;

namespace {

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read_text(const std::string& path) {
  std::stringstream s;
  s << std::ifstream(path, std::ios::binary).rdbuf();
  return s.str();
}

bool same(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  return x.shape() == y.shape() &&
         std::equal(x.data<uint8_t>(), x.data<uint8_t>() + x.numel(), y.data<uint8_t>());
}

SafeguardConfig unmarked() {
  SafeguardConfig c = default_safeguards();
  c.mark.enabled = false;
  return c;
}

const StreamFacts kFacts = {"a stream", "a model", "make it night", 1};

}  // namespace

TEST_CASE("configuration: the defaults, what a file changes, and what it may not say") {
  TempDir dir;
  const SafeguardConfig d = load_safeguards("");
  CHECK(d.screen.rules.size() >= 5);
  CHECK(d.mark.enabled);
  write_text(dir / "s.json", R"({"control": {"max_strength": 0.5, "mask": "m.png"}, "mark": {"psnr": 45}})");
  const SafeguardConfig c = load_safeguards(dir / "s.json");
  CHECK(c.control.max_strength == 0.5);
  CHECK(c.control.mask == dir / "m.png");
  CHECK(c.mark.psnr == 45);
  CHECK(c.screen.rules.size() == d.screen.rules.size());
  for (const char* bad :
       {R"({"extra": 1})", R"({"screen": {"extra": 1}})", R"({"control": {"max_strength": 1.5}})",
        R"({"control": {"max_strength": "1"}})", R"({"monitor": {"flashes": 4}})",
        R"({"monitor": {"drift": -1}})", R"({"mark": {"psnr": 41}})", R"({"mark": {"payload": "12"}})",
        R"({"mark": {"key": ""}})", R"({"mark": {"key_file": "absent"}})",
        R"({"screen": {"rules": [{"category": "a"}]}})",
        R"({"screen": {"rules": [{"category": "a", "terms": []}]}})",
        R"({"screen": {"classifier": {"on_failure": "shrug"}}})", R"({"audit": {"file": 3}})", "[]", "{"}) {
    CAPTURE(bad);
    write_text(dir / "bad.json", bad);
    CHECK_THROWS_AS(load_safeguards(dir / "bad.json"), Error);
  }
}

TEST_CASE("blend: strength and protected regions") {
  const Tensor source = full({1, 4, 4, 3}, 100, DType::u8), edit = full({1, 4, 4, 3}, 201, DType::u8);
  CHECK(same(blend(source, edit, 1, {}), edit));
  CHECK(same(blend(source, edit, 0, {}), source));
  CHECK(same(blend(source, edit, 0.5, {}), full({1, 4, 4, 3}, 151, DType::u8)));
  const Tensor image = zeros({2, 2, 3}, DType::u8);
  image.slice(1, 0, 1).fill(255);
  // White on the left: the source stays there, at the size of the frames.
  const Tensor kept = blend(source.slice(1, 0, 2).slice(2, 0, 2).contiguous(),
                            edit.slice(1, 0, 2).slice(2, 0, 2).contiguous(), 1, region_mask(image, 2, 2));
  CHECK(same(kept.slice(2, 0, 1), full({1, 2, 1, 3}, 100, DType::u8)));
  CHECK(same(kept.slice(2, 1, 2), full({1, 2, 1, 3}, 201, DType::u8)));
}

TEST_CASE("audit log: whole, continued, shared; every change breaks it") {
  TempDir dir;
  const std::string path = dir / "audit.jsonl";
  {
    AuditLog log(path);
    log.append("first", {{"a", 1}});
    log.append("second", {{"text", "bad \xff bytes"}});
  }
  {
    AuditLog one(path), two(path);
    std::thread other([&] {
      for (int i = 0; i < 20; ++i) one.append("one", Json::object());
    });
    for (int i = 0; i < 20; ++i) two.append("two", Json::object());
    other.join();
  }
  const AuditCheck whole = verify_audit(path);
  CHECK(whole.error.empty());
  CHECK(whole.entries == 42);
  const std::string text = read_text(path);

  const auto broken = [&](std::string changed) {
    write_text(dir / "changed", changed);
    const bool found = !verify_audit(dir / "changed").error.empty();
    CHECK(run_program({RIVULET_BIN, "audit", dir / "changed"}).code == (found ? 1 : 0));
    if (found) CHECK_THROWS_AS(AuditLog(dir / "changed"), Error);
    return found;
  };
  CHECK_FALSE(broken(text));
  std::string changed = text;
  changed.replace(changed.find("\"a\":1"), 5, "\"a\":2");
  CHECK(broken(changed));
  const size_t line2 = text.find('\n') + 1, line3 = text.find('\n', line2) + 1;
  CHECK(broken(text.substr(line2)));                                                  // the first is gone
  CHECK(broken(text.substr(0, line2) + text.substr(line3)));                          // the second is gone
  CHECK(broken(text.substr(0, line2) + text.substr(0, line2) + text.substr(line2)));  // one twice
  CHECK(broken(text.substr(0, text.size() - 1)));                                     // cut off
  CHECK(broken(text + "{}\n"));
  // A line made anew with a fitting hash breaks at the next one.
  Json forged = Json::parse(text.substr(0, line2));
  forged["a"] = 3;
  forged.erase("hash");
  forged["hash"] = hex(sha256(forged.dump()));
  CHECK(broken(forged.dump() + "\n" + text.substr(line2)));
}

TEST_CASE("admit: refusals name their rule and are logged") {
  TempDir dir;
  SafeguardConfig c = default_safeguards();
  c.audit.file = dir / "audit";
  c.screen.classifier.command = {
      "sh", "-c", "read l; case \"$l\" in *storm*) echo refuse weather;; *) echo allow;; esac"};
  const Safeguards s(c);
  s.admit("make it night", "me");
  const auto rule_of = [&](const std::string& text) -> std::string {
    try {
      s.admit(text, "me");
    } catch (const Refused& r) {
      CHECK(std::string(r.what()).find(r.rule()) != std::string::npos);
      return r.rule();
    }
    return "";
  };
  CHECK(rule_of("make her n.u.d.e") == "sexual/nude*");
  CHECK(rule_of("make a storm") == "classifier/refused");
  CHECK(verify_audit(c.audit.file).entries == 3);
  CHECK(read_text(c.audit.file).find("classifier/refused") != std::string::npos);
}

TEST_CASE("stream: falls back to the source for as long as it says") {
  SafeguardConfig c = unmarked();
  c.monitor.hold_seconds = 0.5;
  const Safeguards s(c);
  StreamGuard guard(s, kFacts);
  const Tensor source = moving_picture(3, 72, 128), black = zeros({3, 72, 128, 3}, DType::u8);
  const Tensor edit = blend(source, black, 0.5, {});
  CHECK(same(guard.apply(source, edit, 0.1).frames, edit));
  const GuardedFrames bad = guard.apply(source, black, 0.1);
  REQUIRE(!bad.alarms.empty());
  CHECK(bad.alarms[0].kind == Trouble::black);
  CHECK(bad.fell_back);
  CHECK(same(bad.frames, source));
  CHECK(guard.apply(source, edit, 0.1).fell_back);  // 0.3 s of 0.5
  CHECK(guard.apply(source, edit, 0.1).fell_back);
  CHECK(same(guard.apply(source, edit, 0.1).frames, edit));
  const GuardedFrames failed = guard.apply(source, {}, 0.1);
  REQUIRE(failed.alarms.size() == 1);
  CHECK(failed.alarms[0].kind == Trouble::not_finite);
  CHECK(same(failed.frames, source));
}

TEST_CASE("stream: a flashing edit is stopped before the fourth flash is shown") {
  const Safeguards s(unmarked());
  StreamGuard guard(s, kFacts);
  const Tensor source = moving_picture(2, 72, 128);
  bool alarmed = false;
  int shown = 0;
  for (int i = 0; i < 20 && !alarmed; ++i) {  // one flash a chunk, ten a second, with the source's structure
    const Tensor edit = source.clone();
    for (int64_t k = 0; k < edit.numel(); ++k) {
      uint8_t& v = edit.data<uint8_t>()[k];
      v = uint8_t(k < edit.numel() / 2 ? v / 4 : 160 + v / 4);
    }
    const GuardedFrames g = guard.apply(source, edit, 0.05);
    for (const Alarm& a : g.alarms) alarmed = alarmed || a.kind == Trouble::flash;
    if (!g.fell_back) ++shown;
  }
  CHECK(alarmed);
  CHECK(shown == 3);
}

TEST_CASE("stream: a marked source is refused, or admitted when told to") {
  SafeguardConfig c = default_safeguards();
  const Tensor source = moving_picture(3, 144, 256);
  const Safeguards s(c);
  StreamGuard first(s, kFacts);
  CHECK_NOTHROW(first.look_at_source(source));
  const Tensor marked = first.apply(source, source, 0.1).frames;
  CHECK_FALSE(same(marked, source));
  StreamGuard second(s, kFacts);
  CHECK_THROWS_AS(second.look_at_source(marked), Refused);
  c.control.allow_marked_source = true;
  const Safeguards open(c);
  StreamGuard third(open, kFacts);
  CHECK_NOTHROW(third.look_at_source(marked));
}

TEST_CASE("edit: refuses an instruction and a marked source, marks, logs") {
  TempDir dir;
  save_small_model(dir / "model");
  const Tensor frames = moving_picture(6, 144, 256);
  VideoInfo info;
  info.size = {256, 144};
  const auto sink = open_sink(dir / "in.y4m", info);
  sink->write(frames);
  sink->finish();
  write_text(dir / "s.json",
             R"({"audit": {"file": "audit"}, "mark": {"payload": "00000000000000aa", "key": "secret"}})");
  const auto edit = [&](const std::string& in, const std::string& prompt) {
    return rivulet_edit(
        {in, "-p", prompt, "-o", dir / "out.y4m", "--model", dir / "model", "--safeguards", dir / "s.json"});
  };
  const Outcome refused = edit(dir / "in.y4m", "make it n@ked");
  CHECK(refused.code == 2);
  CHECK(refused.err.find("sexual/naked*") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(dir / "out.y4m"));
  CHECK(edit(dir / "in.y4m", "make it night").code == 0);
  const Outcome read =
      run_program({RIVULET_BIN, "provenance", dir / "out.y4m", "--safeguards", dir / "s.json"});
  CHECK(read.code == 0);
  CHECK(read.out.find("payload 00000000000000aa") != std::string::npos);
  CHECK(run_program({RIVULET_BIN, "provenance", dir / "out.y4m"}).code == 1);  // another key
  std::filesystem::rename(dir / "out.y4m", dir / "marked.y4m");
  const Outcome again = edit(dir / "marked.y4m", "make it night");
  CHECK(again.code == 2);
  CHECK(again.err.find("already carries our mark") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(dir / "out.y4m"));
  CHECK(run_program({RIVULET_BIN, "audit", dir / "audit"}).code == 0);
  CHECK(read_text(dir / "audit").find("marked source refused") != std::string::npos);
}
