// What a client may send, the pictures of the wire, limits and access: everything that needs no server.
#include <doctest/doctest.h>

#include <fstream>

#include "apps/serve/access.h"
#include "apps/serve/frame_queue.h"
#include "apps/serve/ledger.h"
#include "tests/fixtures.h"
#include "tests/serve_fixtures.h"

using namespace rivulet;
using namespace rivulet::serve;

TEST_CASE("protocol: every message is read as it was meant") {
  const auto h = std::get<Hello>(parse_text(R"({"type":"hello","version":1,"role":"edit","token":"abc"})"));
  CHECK(h.role == Role::editor);
  CHECK(h.token == "abc");
  const auto i =
      std::get<Instruct>(parse_text(R"({"type":"instruct","text":"make it night","keep_memory":false})"));
  CHECK(i.text == "make it night");
  CHECK_FALSE(i.keep_memory);
  CHECK(std::get<Instruct>(parse_text(R"({"type":"instruct","text":"x"})")).keep_memory);
  const auto s = std::get<Settings>(
      parse_text(R"({"type":"settings","strength":0.25,"seed":9007199254740991,"steps":8})"));
  CHECK(s.strength == 0.25);
  CHECK(s.seed == 9007199254740991u);
  CHECK(s.steps == 8);
  CHECK_FALSE(std::get<Settings>(parse_text(R"({"type":"settings"})")).seed.has_value());
  const auto p = std::get<Protect>(parse_text(R"({"type":"protect","regions":[[0,0.5,1,0.25]]})"));
  REQUIRE(p.regions.size() == 1);
  CHECK(p.regions[0].y == 0.5);
  CHECK(std::holds_alternative<Reset>(parse_text(R"({"type":"reset"})")));
  CHECK(std::get<Shown>(parse_text(R"({"type":"shown","latency_ms":[12.5],"skipped":3})")).skipped == 3);
}

TEST_CASE("protocol: what is not a message is refused with a reason") {
  const auto refused = [](const std::string& text, const char* reason) {
    CAPTURE(text);
    CHECK_THROWS_WITH_AS(parse_text(text), doctest::Contains(reason), Error);
  };
  refused("", "not a JSON object");
  refused("[]", "not a JSON object");
  refused("{", "not a JSON object");
  refused("{}", "has no type");
  refused(R"({"type":7})", "has no type");
  refused(R"({"type":"shell"})", "does not know");
  refused(R"({"type":"reset","file":"/etc/passwd"})", "holds a field");
  refused(R"({"type":"hello","version":2,"role":"edit"})", "version 2");
  refused(R"({"type":"hello","version":1,"role":"admin"})", "'edit' or 'watch'");
  refused(R"({"type":"instruct"})", "'text' is missing");
  refused(R"({"type":"instruct","text":"a\u0000b"})", "control character");
  refused(R"({"type":"instruct","text":")" + std::string(241, 'a') + R"("})", "241 bytes");
  refused(R"({"type":"settings","strength":1.01})", "from 0 to 1");
  refused(R"({"type":"settings","strength":"1"})", "from 0 to 1");
  refused(R"({"type":"settings","strength":null})", "from 0 to 1");
  refused(R"({"type":"settings","steps":0})", "from 1 to 8");
  refused(R"({"type":"settings","steps":1.5})", "whole number");
  refused(R"({"type":"settings","seed":-1})", "'seed'");
  refused(R"({"type":"protect","regions":[[0,0,1]]})", "[x, y, width, height]");
  refused(R"({"type":"protect","regions":[[0,0,1,2]]})", "from 0 to 1");
  refused(R"({"type":"protect","regions":[[],[],[],[],[],[],[],[],[]]})", "at most 8");
  refused(R"({"type":"reset","x":[[[[[[1]]]]]]})", "not a JSON object");
  refused("{\"type\":\"instruct\",\"text\":\"" + std::string(5000, ' ') + "\"}", "bytes of text");
}

TEST_CASE("protocol: pictures there and back, and damaged ones") {
  const std::string m = picture_message({PictureKind::frame, 0, 0x01020304, 0x1122334455667788}, "jpeg");
  CHECK(m.size() == kPictureHeader + 4);
  CHECK(uint8_t(m[4]) == 4);  // little-endian
  const Picture p = parse_frame(m);
  CHECK(p.header.sequence == 0x01020304);
  CHECK(p.header.captured_us == 0x1122334455667788);
  CHECK(p.jpeg == "jpeg");
  CHECK_THROWS_WITH_AS(parse_frame(m.substr(0, 16)), doctest::Contains("hold no picture"), Error);
  std::string other = m;
  other[0] = 4;
  CHECK_THROWS_WITH_AS(parse_frame(other), doctest::Contains("does not exist"), Error);
  other[0] = 2;
  CHECK_THROWS_WITH_AS(parse_frame(other), doctest::Contains("a client sends frames"), Error);
  other = m;
  other[3] = 1;
  CHECK_THROWS_WITH_AS(parse_frame(other), doctest::Contains("damaged"), Error);
  CHECK_THROWS_WITH_AS(parse_frame(std::string(size_t(kMaxMessageBytes) + 1, '\1')),
                       doctest::Contains("at most"), Error);
}

TEST_CASE("jpeg: sizes from the markers, scaling while decoding, damage refused") {
  const std::string jpeg = camera_jpeg(0, {320, 192});
  CHECK(jpeg_size(jpeg) == FrameSize{320, 192});
  JpegCodec codec;
  CHECK(size_of_frames(codec.decode(jpeg, {320, 192})) == FrameSize{320, 192});
  CHECK(size_of_frames(codec.decode(jpeg, {150, 90})) == FrameSize{160, 96});
  CHECK(size_of_frames(codec.decode(jpeg, {1, 1})) == FrameSize{40, 24});
  for (size_t cut : {0, 1, 3, 20, 200, int(jpeg.size()) - 40})
    CHECK_THROWS_AS(codec.decode(jpeg.substr(0, cut), {320, 192}), Error);
  std::string huge = jpeg;
  const size_t sof = huge.find("\xff\xc0");
  REQUIRE(sof != huge.npos);
  huge[sof + 7] = '\x7f';  // the high byte of the width
  CHECK_THROWS_WITH_AS(codec.decode(huge, {1, 1}), doctest::Contains("sides of 1 to 2048"), Error);
  std::string progressive = jpeg;
  progressive[sof + 1] = '\xc2';
  CHECK_THROWS_WITH_AS(codec.decode(progressive, {1, 1}), doctest::Contains("not baseline"), Error);
  CHECK_THROWS_WITH_AS(codec.decode("\x89PNG", {1, 1}), doctest::Contains("not a JPEG"), Error);
}

TEST_CASE("limits: a rate allows a burst, then its average") {
  RateLimit limit(10, 5);
  int passed = 0;
  for (int i = 0; i < 20; ++i) passed += limit.take(1);
  CHECK(passed == 5);
  for (int i = 1; i <= 100; ++i) passed += limit.take(1 + i * 0.01);
  CHECK(passed == 15);
  CHECK_FALSE(limit.take(0.5));  // a clock that goes back gives nothing
  CHECK_FALSE(RateLimit(1, 5).take(1, 6));
}

TEST_CASE("frame queue: the oldest goes, is counted, and a closed one lets go") {
  FrameQueue queue(3);
  const auto frame = [](uint32_t n) { return SourceFrame{{PictureKind::frame, 0, n, 0}, {}, 0}; };
  for (uint32_t n = 1; n <= 5; ++n) queue.push(frame(n));
  CHECK(queue.dropped() == 2);
  const auto taken = queue.take(2);
  REQUIRE(taken.size() == 2);
  CHECK(taken[0].header.sequence == 3);
  std::thread closer([&] { queue.close(); });
  CHECK(queue.take(2).empty());
  closer.join();
}

TEST_CASE("access: secrets, loopback, hosts and origins") {
  const std::string token = new_token();
  CHECK(token.size() == 32);
  CHECK(token != new_token());
  CHECK(same_secret(token, token));
  std::string wrong = token;
  wrong.back() = wrong.back() == '0' ? '1' : '0';
  for (const std::string& w : {wrong, token.substr(1), token + token, std::string()})
    CHECK_FALSE(same_secret(w, token));
  CHECK_THROWS_AS(same_secret("", ""), Error);

  CHECK(is_loopback("127.0.0.1"));
  CHECK(is_loopback("127.9.9.9"));
  CHECK(is_loopback("::1"));
  CHECK_FALSE(is_loopback("0.0.0.0"));
  CHECK_FALSE(is_loopback("::"));
  CHECK_FALSE(is_loopback("192.168.1.1"));
  CHECK_THROWS_AS(is_loopback("localhost.example"), Error);

  CHECK(host_allowed("localhost:8017", 8017, false));
  CHECK(host_allowed("[::1]:8017", 8017, false));
  CHECK_FALSE(host_allowed("localhost:8018", 8017, false));
  CHECK_FALSE(host_allowed("attacker.example:8017", 8017, false));
  CHECK_FALSE(host_allowed("", 8017, true));
  CHECK(host_allowed("camera.lan:8017", 8017, true));
  CHECK(origin_allowed("http://localhost:8017", "localhost:8017"));
  CHECK_FALSE(origin_allowed("http://evil.example", "localhost:8017"));
  CHECK_FALSE(origin_allowed("http://localhost:8017.evil.example", "localhost:8017"));
  CHECK_FALSE(origin_allowed("", "localhost:8017"));
  CHECK_FALSE(origin_allowed("null", "localhost:8017"));
}

TEST_CASE("ledger: quantiles, rates, a file of one line per chunk") {
  CHECK(quantile({}, 0.5) == 0);
  CHECK(quantile({3, 1, 2}, 0.5) == 2);
  CHECK(quantile({1, 2, 3, 4}, 0.99) == 4);
  const TempDir dir;
  Ledger ledger(dir / "ledger.jsonl");
  ChunkRow row;
  row.frames = 3;
  row.stage_ms = 300;
  row.total_ms = 700;
  for (int i = 0; i < 40; ++i) {
    row.chunk = i;
    ledger.add(row, 100 + 0.3 * i);
  }
  ledger.shown({500, 600, 900}, 2, 112);
  const nlohmann::json s = ledger.summary(112);
  CHECK(s.at("fps").get<double>() == doctest::Approx(10).epsilon(0.05));
  CHECK(s.at("pace_fps").get<double>() == doctest::Approx(10.5));
  CHECK(s.at("glass_p50_ms") == 600);
  CHECK(s.at("glass_p99_ms") == 900);
  CHECK(s.at("edited") == 120);
  CHECK(s.at("memory_mb").get<double>() > 1);
  CHECK(ledger.summary(200).at("glass_p99_ms") == 0);  // long ago
  std::ifstream file(dir / "ledger.jsonl");
  int lines = 0;
  for (std::string line; std::getline(file, line); ++lines) {
    const nlohmann::json row = nlohmann::json::parse(line);
    CHECK(row.at("chunk") == lines);
    for (const char* field : {"encode_ms", "pass_ms", "latents_ms", "queue_ms", "dropped", "glass_p50_ms",
                              "glass_p99_ms", "fps", "memory_mb"})
      CHECK(row.contains(field));
    if (lines == 39) CHECK(row.at("fps").get<double>() == doctest::Approx(10).epsilon(0.05));
  }
  CHECK(lines == 40);
  CHECK_THROWS_WITH_AS(Ledger(dir / "no/such/ledger"), doctest::Contains("cannot be written"), Error);
}
