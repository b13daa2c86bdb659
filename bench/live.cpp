#include "bench/live.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

#include "apps/process.h"
#include "apps/serve/client.h"
#include "apps/serve/jpeg.h"
#include "apps/serve/ledger.h"
#include "apps/serve/pipeline.h"
#include "apps/video.h"
#include "bench/machine.h"
#include "bench/report.h"

namespace rivulet::bench {
namespace {

using nlohmann::json;
using serve::steady_seconds;

std::string program_beside() {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "rivulet").string();
}

// A running `rivulet serve` on a port of its own.
struct ServerProcess {
  Process process;
  int port = 0;

  explicit ServerProcess(const LiveSettings& s)
      : process({program_beside(), "serve", "--port", "0", "--size", s.size}, Pipes::output) {
    std::string line;
    for (char c = 0; process.read(&c, 1) == 1 && c != '\n';) line.push_back(c);
    const size_t colon = line.rfind(':');
    check(line.rfind("http://", 0) == 0 && colon != line.npos, "serve: did not start (", process.last_words(),
          ")");
    port = std::stoi(line.substr(colon + 1));
  }
  double memory_mb() const {
    std::ifstream statm("/proc/" + std::to_string(process.pid()) + "/statm");
    double total = 0, resident = 0;
    statm >> total >> resident;
    return resident * double(::sysconf(_SC_PAGESIZE)) / (1 << 20);
  }
};

// The frames of the bundled clip as a camera would send them.
std::vector<std::string> camera_frames(const LiveSettings& s) {
  const auto clip =
      open_source(RIVULET_SOURCE_DIR "/apps/demo/city.mp4", {.size = {640, 360}, .image_rate = {}});
  serve::JpegCodec codec;
  std::vector<std::string> frames;
  const FrameSize size = parse_size(s.size);
  for (Tensor f; (f = clip->read(1)).defined();)
    frames.push_back(codec.encode(fit_frames(f, size).select(0, 0).contiguous(), 90));
  return frames;
}

struct Minute {
  std::vector<double> latency_ms;
  double memory_mb = 0;
};

json figures(const std::vector<double>& ms, double seconds) {
  return {{"frames", ms.size()},
          {"fps", double(ms.size()) / seconds},
          {"p50_ms", serve::quantile(ms, 0.5)},
          {"p99_ms", serve::quantile(ms, 0.99)},
          {"max_ms", serve::quantile(ms, 1)}};
}

class Run {
 public:
  explicit Run(const LiveSettings& s)
      : settings_(s), frames_(camera_frames(s)), server_(s), client_("127.0.0.1", server_.port) {
    client_.say({{"type", "hello"}, {"version", 1}, {"role", "edit"}});
    check(!client_.wait_for("welcome", 10).is_null(), "serve: gave no welcome");
    client_.say({{"type", "instruct"}, {"text", s.instruction}});
  }

  json measure() {
    warm_up();
    start_ = steady_seconds();
    while (steady_seconds() - start_ < settings_.seconds) {
      check(client_.connected(), "serve: the connection was lost");
      turn();
      const auto minute = size_t((steady_seconds() - start_) / 60);
      if (minute >= minutes_.size()) {
        if (minute > 0)
          std::fprintf(stderr, "minute %zu: %s\n", minute, minute_row(minute - 1).dump().c_str());
        minutes_.push_back({});
      }
    }
    return report();
  }

 private:
  // Until frames flow at the server's own pace.
  void warm_up() {
    const double until = steady_seconds() + 5;
    while (steady_seconds() < until) turn();
    latency_ms_.clear(), memory_.clear(), minutes_.clear();
    dropped_before_ = dropped_;
    sent_ = 0;
  }

  // Sends a frame when one is due and takes what has come.
  void turn() {
    const double now = steady_seconds();
    if (now >= due_) {
      client_.show({serve::PictureKind::frame, 0, ++sequence_, uint64_t(now * 1e6)},
                   frames_[sequence_ % frames_.size()]);
      ++sent_;
      due_ = std::max(due_ + 1 / fps_, now - 0.1);
    }
    if (now >= next_look_) {
      next_look_ = now + 1;
      memory_.push_back(server_.memory_mb());
      if (!minutes_.empty()) minutes_.back().memory_mb = memory_.back();
      if (!batch_.empty()) client_.say({{"type", "shown"}, {"latency_ms", batch_}});
      batch_.clear();
    }
    while (const auto message = client_.next(std::clamp(due_ - steady_seconds(), 0.0, 0.02))) take(*message);
  }

  void take(const serve::FromServer& m) {
    if (m.picture) {
      const double ms = (steady_seconds() * 1e6 - double(m.picture->header.captured_us)) / 1000;
      latency_ms_.push_back(ms);
      if (batch_.size() < size_t(serve::kMaxLatencies)) batch_.push_back(ms);
      if (!minutes_.empty()) minutes_.back().latency_ms.push_back(ms);
    } else if (m.text.value("type", "") == "ledger") {
      ledger_ = m.text;
      dropped_ = ledger_.value("dropped", 0);
      const double pace = ledger_.value("pace_fps", 0.0);
      if (pace > 0) fps_ = std::min(settings_.camera_fps, pace);
    } else if (m.text.value("type", "") == "refused") {
      fail("serve: ", m.text.value("text", ""));
    }
  }

  json minute_row(size_t i) const {
    json row = figures(minutes_[i].latency_ms, 60);
    row["memory_mb"] = minutes_[i].memory_mb;
    return row;
  }

  json report() const {
    json out = figures(latency_ms_, settings_.seconds);
    out["sent"] = sent_;
    out["dropped"] = dropped_ - dropped_before_;
    out["memory_first_mb"] = memory_.front();
    out["memory_last_mb"] = memory_.back();
    out["memory_max_mb"] = *std::max_element(memory_.begin(), memory_.end());
    out["ledger"] = ledger_;
    for (size_t i = 0; i + 1 < minutes_.size(); ++i) out["minutes"].push_back(minute_row(i));
    return out;
  }

  const LiveSettings settings_;
  const std::vector<std::string> frames_;
  ServerProcess server_;
  serve::LiveClient client_;
  double start_ = 0, due_ = 0, next_look_ = 0, fps_ = 8;
  uint32_t sequence_ = 0;
  int64_t sent_ = 0, dropped_ = 0, dropped_before_ = 0;
  std::vector<double> latency_ms_, batch_, memory_;
  std::vector<Minute> minutes_;
  json ledger_;
};

}  // namespace

json measure_live(const LiveSettings& settings) {
  json file = result_file(measure_machine(), {});
  for (const char* unused : {"rows", "warm_up_s", "repetition_s"}) file.erase(unused);
  file["what"] = "rivulet serve";
  file["size"] = settings.size;
  file["instruction"] = settings.instruction;
  file["seconds"] = settings.seconds;
  file["camera_fps"] = settings.camera_fps;
  file["live"] = Run(settings).measure();
  return file;
}

}  // namespace rivulet::bench
