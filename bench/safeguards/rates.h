// What the safeguards achieve, measured on real clips; each part returns its figures for the result file.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace rivulet::bench {

using Clips = std::vector<std::string>;

// Survival of the mark, the picture's loss, cost, and false readings on clean frames.
nlohmann::json mark_rates(const Clips& clips, int64_t clean_frames);
// Refusals of disguised terms and of harmless sentences. texts: files of English prose, read line by line.
nlohmann::json screen_rates(const std::vector<std::string>& texts);
// Alarms on clips that are in order, on brook's edits of them, and on made-up flashing; how far apart edits
// and unrelated pictures are to the bound on drift.
nlohmann::json monitor_rates(const Clips& clips, const std::vector<std::string>& photos);

class Timer {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace rivulet::bench
