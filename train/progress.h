// Progress of a long job: a bar with rate and time left on a terminal, plain lines now and then in a log.
#pragma once

#include <chrono>
#include <cstdint>
#include <iostream>
#include <string>

namespace rivulet {

// H:MM:SS, or M:SS below an hour.
std::string format_duration(double seconds);

class Progress {
 public:
  // `total` 0 means unknown: no bar and no time left, just the count and the rate.
  explicit Progress(std::string label, int64_t total = 0, std::ostream& out = std::cerr);
  // Leaves the cursor on a fresh line when the job ends early (by an exception, say).
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // A resumed job: `done` units were finished before this run and do not count towards its rate.
  void start_at(int64_t done);
  // `done` units are finished in all. Draws only when enough time has passed, so it may be called freely.
  void update(int64_t done, const std::string& note = "");
  // One last line with the whole time. Calls after the first do nothing.
  void finish(const std::string& note = "");

  int64_t done() const { return done_; }
  double seconds() const;           // since construction
  double units_per_second() const;  // 0 until something is done

 private:
  void draw_bar(const std::string& note);
  void write_line(const std::string& note);

  using Clock = std::chrono::steady_clock;
  std::string label_;
  int64_t total_, done_ = 0, first_ = 0;
  std::ostream& out_;
  int terminal_;  // its file descriptor, -1 when `out` is not a terminal
  Clock::time_point begin_, last_;
  bool line_open_ = false, finished_ = false;
};

}  // namespace rivulet
