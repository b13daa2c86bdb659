// The live server on loopback: a real edit over a real WebSocket, and clients that mean no good.
#include <doctest/doctest.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>

#include <filesystem>
#include <random>

#include "apps/bundled.h"
#include "apps/serve/assets.h"
#include "tests/serve_fixtures.h"

using namespace rivulet;
using namespace rivulet::serve;
using boost::asio::ip::tcp;

namespace {

double mean_of(const Tensor& frame) {
  double sum = 0;
  for (int64_t i = 0; i < frame.numel(); ++i) sum += frame.data<uint8_t>()[i];
  return sum / double(frame.numel());
}

// Shows frames until `count` edits came back; their sequence numbers. negative: whether each is nearer to the
// camera's picture inverted.
std::vector<uint32_t> edit_frames(LiveClient& client, size_t count, uint32_t& sequence,
                                  Tensor* last = nullptr, std::vector<bool>* negative = nullptr) {
  std::vector<uint32_t> edited;
  JpegCodec codec;
  const double until = steady_seconds() + 30;
  while (edited.size() < count && steady_seconds() < until) {
    ++sequence;
    client.show({PictureKind::frame, 0, sequence, sequence * 1000ull}, camera_jpeg(int(sequence)));
    while (const auto m = client.next(0.04)) {
      if (!m->picture) continue;
      CHECK(m->picture->header.kind == PictureKind::edited);
      CHECK(m->picture->header.captured_us == m->picture->header.sequence * 1000ull);
      edited.push_back(m->picture->header.sequence);
      if (last != nullptr) *last = codec.decode(m->picture->jpeg, {96, 64});
      // The camera's mean is 156.
      if (negative != nullptr) negative->push_back(mean_of(codec.decode(m->picture->jpeg, {96, 64})) < 127.5);
    }
  }
  return edited;
}

// As large as a JPEG of its size gets.
std::string noise_jpeg(FrameSize size) {
  Tensor frame({size.height, size.width, 3}, DType::u8);
  std::mt19937 random(1);
  for (int64_t i = 0; i < frame.numel(); ++i) frame.data<uint8_t>()[i] = uint8_t(random());
  return JpegCodec().encode(frame, 92);
}

LiveClient editor_of(const RunningServer& server) {
  LiveClient client = server.client();
  client.say(hello("edit"));
  REQUIRE_FALSE(client.wait_for("welcome", 5).is_null());
  client.say({{"type", "instruct"}, {"text", "make it night"}});
  return client;
}

// Of this process.
size_t threads() { return size_t(std::distance(std::filesystem::directory_iterator("/proc/self/task"), {})); }

tcp::socket plain_socket(boost::asio::io_context& io, int port) {
  tcp::socket socket(io);
  socket.connect({boost::asio::ip::make_address("127.0.0.1"), static_cast<unsigned short>(port)});
  return socket;
}

}  // namespace

TEST_CASE("serve: frames go in, edits come out, in order and of the right size") {
  LiveOptions options = RunningServer::small();
  const TempDir dir;
  options.ledger = dir / "ledger.jsonl";
  const RunningServer server(options);
  LiveClient client = editor_of(server);
  uint32_t sequence = 0;
  Tensor last;
  const auto edited = edit_frames(client, 9, sequence, &last);
  REQUIRE(edited.size() >= 9);
  CHECK(std::is_sorted(edited.begin(), edited.end()));
  CHECK(size_of_frames(last) == FrameSize{96, 64});
  // The untrained network returns its source, so the picture is the camera's but for compression and mark.
  const Tensor source = JpegCodec().decode(camera_jpeg(int(edited.back())), {96, 64});
  double error = 0;
  for (int64_t i = 0; i < last.numel(); ++i)
    error += std::abs(int(last.data<uint8_t>()[i]) - int(source.data<uint8_t>()[i]));
  CHECK(error / double(last.numel()) < 6);
  client.say({{"type", "shown"}, {"latency_ms", {120, 130}}});
  const nlohmann::json ledger = [&] {
    nlohmann::json m = nlohmann::json::object();
    for (int i = 0; i < 10 && m.value("glass_p50_ms", 0.0) == 0; ++i) m = client.wait_for("ledger", 3);
    return m;
  }();
  CHECK(ledger.at("glass_p50_ms") == 120);
  CHECK(ledger.at("edited").get<int64_t>() >= 9);
  CHECK(ledger.at("last").at("pass_ms").size() == 5);
  CHECK(std::filesystem::file_size(options.ledger) > 100);
}

TEST_CASE("serve: an instruction is changed, refused by name, and unknown words are named") {
  const RunningServer server;
  LiveClient client = editor_of(server);
  const auto state = [&](const std::string& instruction) {
    for (int i = 0; i < 8; ++i)
      if (client.wait_for("state", 5).value("instruction", "") == instruction) return true;
    return false;
  };
  CHECK(state("make it night"));
  client.say({{"type", "instruct"}, {"text", "make night"}, {"keep_memory", false}});
  CHECK(state("make night"));
  client.say({{"type", "instruct"}, {"text", "make it zebra"}});
  CHECK(client.wait_for("refused", 5).value("text", "").find("zebra") != std::string::npos);
  client.say({{"type", "instruct"}, {"text", "beh3ading"}});
  CHECK(client.wait_for("refused", 5).value("code", "").rfind("violence/", 0) == 0);
}

TEST_CASE("serve: a new instruction changes whole chunks, with and without the memory") {
  const RunningServer server(RunningServer::small(), default_safeguards(), bundled_model());
  const auto chunk = size_t(server.editor.chunk_frames());
  REQUIRE(server.editor.first_chunk_frames() == int64_t(chunk));
  for (const bool keep : {true, false}) {
    LiveClient client = server.client();
    client.say(hello("edit"));
    REQUIRE_FALSE(client.wait_for("welcome", 5).is_null());
    client.say({{"type", "instruct"}, {"text", "leave it alone"}});
    uint32_t sequence = 0;
    std::vector<bool> negative;  // of each edited frame, in the order that they came in
    edit_frames(client, 2 * chunk, sequence, nullptr, &negative);
    client.say({{"type", "instruct"}, {"text", "invert the colours"}, {"keep_memory", keep}});
    edit_frames(client, 5 * chunk, sequence, nullptr, &negative);
    REQUIRE(negative.size() >= 7 * chunk);
    for (size_t i = 0; i + chunk <= negative.size(); i += chunk)
      for (size_t k = 1; k < chunk; ++k) CHECK(negative[i + k] == negative[i]);
    CHECK_FALSE(negative.front());
    CHECK(negative.back());
    CHECK(std::is_sorted(negative.begin(), negative.end()));  // and there is no way back
  }
}

TEST_CASE("serve: too many frames are dropped and counted, the oldest first") {
  const RunningServer server;
  LiveClient client = server.client();
  client.say(hello("edit"));
  REQUIRE_FALSE(client.wait_for("welcome", 5).is_null());
  // Without an instruction nothing is edited: of 20 frames the newest few wait.
  const std::string jpeg = camera_jpeg(1);
  for (uint32_t n = 1; n <= 20; ++n) client.show({PictureKind::frame, 0, n, n}, jpeg);
  client.say({{"type", "instruct"}, {"text", "make it night"}});
  uint32_t first = 0;
  while (const auto m = client.next(5))
    if (m->picture) {
      first = m->picture->header.sequence;
      break;
    }
  CHECK(first > 15);
  CHECK(client.wait_for("ledger", 5).at("dropped").get<int>() >= 15);
}

TEST_CASE("serve: what a client does not take is left out and counted, and never piles up") {
  const RunningServer server;
  LiveClient client = editor_of(server);
  // Viewers are sent the sources too, which are large here.
  const std::string jpeg = noise_jpeg({480, 320});
  REQUIRE(jpeg.size() > 100000);
  int64_t unsent = 0;
  uint32_t sequence = 0;
  for (int attempt = 0; attempt < 5 && unsent == 0; ++attempt) {
    // It reads nothing after its welcome, and is cut off for that a little later.
    LiveClient viewer = server.client();
    viewer.say(hello("watch"));
    REQUIRE_FALSE(viewer.wait_for("welcome", 5).is_null());
    const double until = steady_seconds() + 4;
    while (unsent == 0 && steady_seconds() < until) {
      ++sequence;
      client.show({PictureKind::frame, 0, sequence, sequence}, jpeg);
      while (const auto m = client.next(0.02))
        if (m->text.is_object()) unsent = std::max(unsent, m->text.value("unsent", int64_t(0)));
    }
  }
  CHECK(unsent > 0);
  CHECK(client.connected());
}

TEST_CASE("serve: a viewer sees source and edit; a second editor does not get in") {
  const RunningServer server;
  LiveClient client = editor_of(server), viewer = server.client(), second = server.client();
  viewer.say(hello("watch"));
  REQUIRE_FALSE(viewer.wait_for("welcome", 5).is_null());
  second.say(hello("edit"));
  CHECK(second.wait_for("refused", 5).value("code", "") == "taken");
  while (second.next(5)) continue;
  CHECK_FALSE(second.connected());
  uint32_t sequence = 0;
  edit_frames(client, 6, sequence);
  int sources = 0, edits = 0;
  while (const auto m = viewer.next(0.5)) {
    if (!m->picture) continue;
    (m->picture->header.kind == PictureKind::source ? sources : edits) += 1;
  }
  CHECK(edits >= 6);
  CHECK(sources == edits);
}

TEST_CASE("serve: the page and nothing else, to its own name alone") {
  const RunningServer server;
  const auto get = [&](const std::string& path, const std::string& more = "", std::string host = "") {
    if (host.empty()) host = server.host();
    return server.http("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n" + more +
                       "\r\n");
  };
  const std::string page = get("/");
  CHECK(page.find("200 OK") != page.npos);
  CHECK(page.find("Content-Security-Policy: default-src 'none'") != page.npos);
  CHECK(page.find("<title>Rivulet</title>") != page.npos);
  for (const Asset& asset : page_assets()) {
    const std::string answer = get(std::string(asset.path));
    CAPTURE(asset.path);
    CHECK(answer.size() > asset.body.size());
    CHECK(answer.substr(answer.size() - asset.body.size()) == asset.body);
  }
  for (const char* path :
       {"/../etc/passwd", "/%2e%2e/etc/passwd", "/etc/passwd", "//etc/passwd", "/app.js/..", "/page/app.js"})
    CHECK(get(path).find("404") != std::string::npos);
  CHECK(get("/", "", "attacker.example").find("403") != std::string::npos);
  CHECK(server
            .http("POST / HTTP/1.1\r\nHost: " + server.host() +
                  "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .find("405") != std::string::npos);
  CHECK(get("/" + std::string(9000, 'a')).find("200 OK") == std::string::npos);
  CHECK(get("/live").find("426") != std::string::npos);
  CHECK_THROWS_AS(LiveClient("127.0.0.1", server.live.port(), "http://evil.example"), Error);
}

TEST_CASE("serve: another address asks for the token") {
  LiveOptions options = RunningServer::small();
  options.token = "0123456789abcdef0123456789abcdef";
  options.server.token = true;
  const RunningServer server(options);
  LiveClient wrong = server.client(), right = server.client();
  wrong.say(hello("edit", "0123456789abcdef0123456789abcdee"));
  CHECK(wrong.wait_for("refused", 5).value("code", "") == "token");
  right.say(hello("edit", options.token));
  CHECK_FALSE(right.wait_for("welcome", 5).is_null());
}

TEST_CASE("serve: a client that vanishes frees everything within five seconds") {
  const RunningServer server;
  const size_t idle = threads();
  LiveClient silent = editor_of(server);
  uint32_t sequence = 0;
  REQUIRE(edit_frames(silent, 6, sequence).size() >= 6);
  CHECK(threads() > idle);
  // From here on it reads nothing, so no ping is answered either, while frames that it sent are still edited.
  for (int i = 0; i < 6; ++i) {
    ++sequence;
    silent.show({PictureKind::frame, 0, sequence, sequence}, camera_jpeg(int(sequence)));
  }
  const double begun = steady_seconds();
  LiveClient second = server.client();
  second.say(hello("edit"));
  CHECK(second.wait_for("refused", 5).value("code", "") == "taken");
  while (threads() > idle && steady_seconds() - begun < 10)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(steady_seconds() - begun < 5);
  LiveClient next = server.client();
  next.say(hello("edit"));
  CHECK_FALSE(next.wait_for("welcome", 5).is_null());
  CHECK(steady_seconds() - begun < 5);
}

TEST_CASE("serve: slow requests and 200 idle connections do not disturb an edit") {
  const RunningServer server;
  LiveClient client = editor_of(server);
  uint32_t sequence = 0;
  REQUIRE(edit_frames(client, 3, sequence).size() >= 3);
  boost::asio::io_context io;
  std::vector<tcp::socket> crowd;
  const double begun = steady_seconds();
  for (int i = 0; i < 200; ++i) {
    crowd.push_back(plain_socket(io, server.live.port()));
    // Half of them say nothing, half begin a request that will never end.
    if (i % 2)
      boost::asio::write(crowd.back(), boost::asio::buffer(std::string("GET / HTTP/1.1\r\nX-Slow: ")));
  }
  CHECK(edit_frames(client, 6, sequence).size() >= 6);
  // A byte now and then buys no time.
  while (steady_seconds() - begun < kRequestSeconds + 1) {
    for (size_t i = 1; i < crowd.size(); i += 2) {
      boost::system::error_code ignored;
      crowd[i].write_some(boost::asio::buffer("a", 1), ignored);
    }
    CHECK(edit_frames(client, 1, sequence).size() >= 1);
  }
  const std::string page =
      server.http("GET / HTTP/1.1\r\nHost: " + server.host() + "\r\nConnection: close\r\n\r\n");
  CHECK(page.find("200 OK") != page.npos);
  int open = 0;
  for (tcp::socket& s : crowd) {
    boost::system::error_code error;
    s.non_blocking(true);
    char byte;
    s.read_some(boost::asio::buffer(&byte, 1), error);
    open += error == boost::asio::error::would_block;
  }
  CHECK(open == 0);
  CHECK(client.connected());
}
