// What every chunk cost and how late its frames were seen: one row per chunk as a JSON line, with the rate,
// the latency and the memory of the last seconds, and a summary of those for the page. Times are
// milliseconds.
#pragma once

#include <deque>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace rivulet::serve {

struct ChunkRow {
  int64_t chunk = 0;  // of the stream, from 0
  int64_t frames = 0;
  double wait_ms = 0;           // of its oldest frame, from arrival until the chunk was begun
  double decode_ms = 0;         // JPEG to pixels of the session's size
  double encode_ms = 0;         // pixels to latents
  std::vector<double> pass_ms;  // each network call; the last one writes the memory
  double latents_ms = 0;        // latents to pixels
  double guard_ms = 0;          // blending, monitoring and marking
  double jpeg_ms = 0;           // pixels to JPEG
  double queue_ms = 0;          // waits between the stages
  double total_ms = 0;          // from the arrival of the oldest frame to the last JPEG
  double stage_ms = 0;          // the slowest of the three stages, which sets the pace
  bool fell_back = false;
  int64_t dropped = 0;  // frames of the session so far that made room for newer ones
};
nlohmann::json to_json(const ChunkRow& row);

// The value below which a share q of the samples lies (nearest rank); 0 of none.
double quantile(std::vector<double> samples, double q);

// Resident bytes of this process, in MB.
double resident_megabytes();

class Ledger {
 public:
  // An empty path keeps no file; otherwise lines are appended to it. Throws when it cannot be written.
  explicit Ledger(const std::string& path = {});

  void begin();  // a new session: forgets the last one's figures
  void add(const ChunkRow& row, double now);
  void shown(const std::vector<double>& latency_ms, int64_t skipped, double now);
  void unsent() { ++unsent_; }  // a picture that made room for a newer one on the way to a client

  // {"type": "ledger", ...}: the last chunk, and over the last ten seconds FPS, glass-to-glass p50 and p99
  // (capture to screen, as the page reports them), server p50 and p99, memory, and the rate at which frames
  // can be taken ("pace_fps").
  nlohmann::json summary(double now);

 private:
  struct Sample {
    double at, value;
  };
  void forget(double now);
  nlohmann::json window(double now) const;
  std::ofstream file_;
  std::deque<Sample> glass_, server_, frames_;
  ChunkRow last_;
  double pace_ = 0, started_ = -1;
  int64_t chunks_ = 0, edited_ = 0, skipped_ = 0, unsent_ = 0, fell_back_ = 0;
};

}  // namespace rivulet::serve
