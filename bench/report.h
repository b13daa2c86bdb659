// Results as a table, as JSON, and side by side.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "bench/row.h"

namespace rivulet::bench {

struct Timing {
  std::vector<double> seconds;  // of one run, one entry per repetition, sorted
  double quantile(double q) const;
  double median() const { return quantile(0.5); }
  // Half the distance between the quartiles, relative to the median.
  double spread() const { return (quantile(0.75) - quantile(0.25)) / 2 / median(); }
};

struct Settings {
  double warm_up_s = 0.05, repetition_s = 0.05;
  int repetitions = 9;
};

// "1.23 ms"
std::string human_seconds(double s);

nlohmann::json to_json(const Row& row, const Timing& timing, const Machine& machine);
// The frame of a result file, its rows still to be filled in.
nlohmann::json result_file(const Machine& machine, const Settings& settings);

nlohmann::json gpu_result_file(DType dtype);

// Rows that both files have a time for, as a Markdown table: median of each and how many times faster `ours`
// is.
std::string compare(const nlohmann::json& ours, const nlohmann::json& theirs);

}  // namespace rivulet::bench
