#include "apps/safeguards/flash.h"

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace rivulet {
namespace {

// A second, less what rounding adds: three flashes a second reach the seventh transition after just that
// long.
constexpr double kSecond = 1 - 1e-6;

}  // namespace

FlashMeter::FlashMeter(const MonitorConfig& config, int columns, int rows)
    : config_(config), columns_(columns), rows_(rows), cells_(size_t(columns * rows)) {
  check(config.flashes >= 1 && config.flashes <= 3, "flash: ", config.flashes, " flashes are not in 1..3");
}

// Follows the extremes since the last transition. A new transition has to turn back from it by flash_change.
bool FlashMeter::transition(Cell& cell, float luminance) const {
  cell.low = std::min(cell.low, luminance);
  cell.high = std::max(cell.high, luminance);
  const bool up = cell.direction <= 0 && luminance - cell.low >= float(config_.flash_change) &&
                  cell.low < float(config_.flash_dark);
  const bool down = cell.direction >= 0 && cell.high - luminance >= float(config_.flash_change) &&
                    luminance < float(config_.flash_dark);
  if (!up && !down) return false;
  cell.direction = up ? 1 : -1;
  cell.low = cell.high = luminance;
  return true;
}

// A flash is two transitions, so the allowed flashes take 2 n of them; the next begins one more.
bool FlashMeter::flashes_too_often(const Cell& cell) const {
  const auto more = int64_t(2 * config_.flashes) + 1;
  return cell.count >= more && now_ - cell.times[size_t((cell.count - more) % 8)] < kSecond;
}

double FlashMeter::largest_share(const std::vector<char>& over) const {
  const int w = std::max(1, int(std::lround(columns_ * config_.flash_field)));
  const int h = std::max(1, int(std::lround(rows_ * config_.flash_field)));
  // Sums over all cells above and to the left.
  std::vector<int> sums(size_t((columns_ + 1) * (rows_ + 1)), 0);
  const auto sum = [&](int y, int x) -> int& { return sums[size_t(y * (columns_ + 1) + x)]; };
  for (int y = 0; y < rows_; ++y)
    for (int x = 0; x < columns_; ++x)
      sum(y + 1, x + 1) = over[size_t(y * columns_ + x)] + sum(y, x + 1) + sum(y + 1, x) - sum(y, x);
  int most = 0;
  for (int y = 0; y + h <= rows_; ++y)
    for (int x = 0; x + w <= columns_; ++x)
      most = std::max(most, sum(y + h, x + w) - sum(y, x + w) - sum(y + h, x) + sum(y, x));
  return double(most) / double(w * h);
}

double FlashMeter::add(const std::vector<float>& luminance, double seconds) {
  check(luminance.size() == cells_.size(), "flash: ", luminance.size(), " values for ", cells_.size(),
        " cells");
  now_ += seconds;
  std::vector<char> over(cells_.size());
  for (size_t i = 0; i < cells_.size(); ++i) {
    Cell& cell = cells_[i];
    if (transition(cell, luminance[i])) cell.times[size_t(cell.count++ % 8)] = now_;
    over[i] = flashes_too_often(cell);
  }
  return largest_share(over);
}

}  // namespace rivulet
