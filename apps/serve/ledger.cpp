#include "apps/serve/ledger.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace rivulet::serve {
namespace {

using Json = nlohmann::json;

constexpr double kWindow = 10;  // seconds that a summary looks back
constexpr size_t kMaxSamples = 4096;

double rounded(double ms) { return std::round(ms * 100) / 100; }

}  // namespace

nlohmann::json to_json(const ChunkRow& r) {
  Json passes = Json::array();
  for (double ms : r.pass_ms) passes.push_back(rounded(ms));
  return {{"chunk", r.chunk},
          {"frames", r.frames},
          {"wait_ms", rounded(r.wait_ms)},
          {"decode_ms", rounded(r.decode_ms)},
          {"encode_ms", rounded(r.encode_ms)},
          {"pass_ms", passes},
          {"latents_ms", rounded(r.latents_ms)},
          {"guard_ms", rounded(r.guard_ms)},
          {"jpeg_ms", rounded(r.jpeg_ms)},
          {"queue_ms", rounded(r.queue_ms)},
          {"total_ms", rounded(r.total_ms)},
          {"stage_ms", rounded(r.stage_ms)},
          {"fell_back", r.fell_back},
          {"dropped", r.dropped}};
}

double quantile(std::vector<double> samples, double q) {
  if (samples.empty()) return 0;
  const double rank = std::ceil(q * double(samples.size()));
  const auto at = samples.begin() + std::clamp<int64_t>(int64_t(rank) - 1, 0, int64_t(samples.size()) - 1);
  std::nth_element(samples.begin(), at, samples.end());
  return *at;
}

double resident_megabytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * double(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

Ledger::Ledger(const std::string& path) {
  if (path.empty()) return;
  file_.open(path, std::ios::app);
  check(file_.good(), path, ": the ledger cannot be written there");
}

void Ledger::begin() {
  for (auto* samples : {&glass_, &server_, &frames_}) samples->clear();
  last_ = {};
  pace_ = 0;
  started_ = -1;
  chunks_ = edited_ = skipped_ = unsent_ = fell_back_ = 0;
}

void Ledger::add(const ChunkRow& row, double now) {
  if (started_ < 0) started_ = now;
  last_ = row;
  ++chunks_;
  edited_ += row.frames;
  fell_back_ += row.fell_back;
  server_.push_back({now, row.total_ms});
  frames_.push_back({now, double(row.frames)});
  const double fps = 1000 * double(row.frames) / std::max(1.0, row.stage_ms);
  pace_ = pace_ == 0 ? fps : 0.8 * pace_ + 0.2 * fps;
  forget(now);
  if (!file_.is_open()) return;
  nlohmann::json line = to_json(row);
  line.update(window(now));
  file_ << line.dump() << '\n' << std::flush;
}

void Ledger::shown(const std::vector<double>& latency_ms, int64_t skipped, double now) {
  for (double ms : latency_ms) glass_.push_back({now, ms});
  skipped_ += skipped;
  forget(now);
}

void Ledger::forget(double now) {
  for (auto* samples : {&glass_, &server_, &frames_})
    while (!samples->empty() && (samples->front().at < now - kWindow || samples->size() > kMaxSamples))
      samples->pop_front();
}

// FPS, latency and memory.
nlohmann::json Ledger::window(double now) const {
  const auto values = [](const std::deque<Sample>& samples) {
    std::vector<double> v;
    for (const Sample& s : samples) v.push_back(s.value);
    return v;
  };
  double frames = 0;
  for (const Sample& s : frames_) frames += s.value;
  const double seconds = started_ < 0 ? 0 : std::min(kWindow, now - started_);
  const std::vector<double> glass = values(glass_), server = values(server_);
  return {{"fps", seconds > 0.5 ? rounded(frames / seconds) : 0},
          {"glass_p50_ms", rounded(quantile(glass, 0.5))},
          {"glass_p99_ms", rounded(quantile(glass, 0.99))},
          {"server_p50_ms", rounded(quantile(server, 0.5))},
          {"server_p99_ms", rounded(quantile(server, 0.99))},
          {"memory_mb", rounded(resident_megabytes())}};
}

nlohmann::json Ledger::summary(double now) {
  forget(now);
  nlohmann::json s = window(now);
  s.update({{"type", "ledger"},
            {"last", to_json(last_)},
            // A little more than the slowest stage takes: too few frames would leave it waiting.
            {"pace_fps", rounded(1.05 * pace_)},
            {"chunks", chunks_},
            {"edited", edited_},
            {"dropped", last_.dropped},
            {"skipped", skipped_},
            {"unsent", unsent_},
            {"fell_back", fell_back_}});
  return s;
}

}  // namespace rivulet::serve
