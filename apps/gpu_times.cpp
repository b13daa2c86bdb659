#include "apps/gpu_times.h"

#include <algorithm>

namespace rivulet {

double quantile(std::vector<double> values, double q) {
  check(!values.empty(), "quantile of nothing");
  std::sort(values.begin(), values.end());
  const double at = q * double(values.size() - 1);
  const size_t low = size_t(at), high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - double(low)) * (values[high] - values[low]);
}

Json times_json(const std::vector<double>& ms) {
  return {{"count", ms.size()},
          {"median_ms", quantile(ms, 0.5)},
          {"p99_ms", quantile(ms, 0.99)},
          {"min_ms", quantile(ms, 0)}};
}

void PieceTimes::begin() {
  names_.clear();
  events_.clear();
  mark();
}

void PieceTimes::end_piece(const std::string& name) {
  names_.push_back(name);
  mark();
}

void PieceTimes::mark() {
  events_.emplace_back();
  events_.back().record();
}

std::map<std::string, double> PieceTimes::sums() const {
  std::map<std::string, double> total;
  for (size_t i = 0; i < names_.size(); ++i) total[names_[i]] += events_[i].milliseconds_to(events_[i + 1]);
  return total;
}

}  // namespace rivulet
