// A live server in this process, on a small untrained network that returns its source unless told otherwise.
#pragma once

#include <thread>

#include "apps/serve/client.h"
#include "apps/serve/jpeg.h"
#include "apps/serve/live.h"
#include "tests/edit_fixtures.h"

namespace rivulet::serve {

inline const std::string& small_model() {
  static const TempDir dir;
  static const std::string model = [] {
    save_small_model(dir / "model");
    return dir / "model";
  }();
  return model;
}

struct RunningServer {
  Editor editor;
  Safeguards safeguards;
  Live live;
  std::thread thread{[this] { live.run(); }};

  explicit RunningServer(const LiveOptions& options = small(),
                         const SafeguardConfig& config = default_safeguards(),
                         const std::string& model = small_model())
      : editor(Editor::load(model)), safeguards(config), live(options, editor, safeguards) {}
  ~RunningServer() {
    live.stop();
    thread.join();
  }
  static LiveOptions small() {
    LiveOptions o;
    o.size = {96, 64};
    return o;
  }
  LiveClient client() const { return LiveClient("127.0.0.1", live.port()); }
  std::string http(const std::string& request, double seconds = 2) const {
    return raw_http("127.0.0.1", live.port(), request, seconds);
  }
  std::string host() const { return "127.0.0.1:" + std::to_string(live.port()); }
};

inline nlohmann::json hello(const char* role, const std::string& token = {}) {
  nlohmann::json h = {{"type", "hello"}, {"version", 1}, {"role", role}};
  if (!token.empty()) h["token"] = token;
  return h;
}

// A picture with something in it, different for every n.
inline std::string camera_jpeg(int n, FrameSize size = {96, 64}) {
  Tensor frame({size.height, size.width, 3}, DType::u8);
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t x = 0; x < size.width; ++x)
      for (int64_t c = 0; c < 3; ++c)
        frame.data<uint8_t>()[(y * size.width + x) * 3 + c] =
            uint8_t(90 + 60 * ((x + n) / 16 % 2) + 20 * c + y / 2);
  return JpegCodec().encode(frame, 92);
}

}  // namespace rivulet::serve
