#include "apps/safeguards/flash.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "tensor/error.h"

namespace rivulet {
namespace {

// A second, less what rounding adds: three flashes a second reach the seventh transition after just that
// long.
constexpr double kSecond = 1 - 1e-6;

constexpr float kDarkestRed = 20.f / 320;

float distance(const std::array<float, 2>& a, const std::array<float, 2>& b) {
  return std::hypot(a[0] - b[0], a[1] - b[1]);
}

}  // namespace

float relative_luminance(const LinearColour& c) { return 0.2126f * c[0] + 0.7152f * c[1] + 0.0722f * c[2]; }

float red_share(const LinearColour& c) {
  const float sum = c[0] + c[1] + c[2];
  return sum > 0 ? c[0] / sum : 0;
}

std::array<float, 2> chromaticity(const LinearColour& c) {
  constexpr std::array<float, 2> kNeutral = {0.19783f, 0.46833f};  // D65
  if (c[0] + c[1] + c[2] <= 0) return kNeutral;
  const float x = 0.4124f * c[0] + 0.3576f * c[1] + 0.1805f * c[2], y = relative_luminance(c),
              z = 0.0193f * c[0] + 0.1192f * c[1] + 0.9505f * c[2], sum = x + 15 * y + 3 * z;
  return {4 * x / sum, 9 * y / sum};
}

FlashMeter::FlashMeter(const MonitorConfig& config, int columns, int rows)
    : config_(config), columns_(columns), rows_(rows), cells_(size_t(columns * rows)) {
  check(config.flashes >= 1 && config.flashes <= 3, "flash: ", config.flashes, " flashes are not in 1..3");
}

// A new transition has to turn back from the last one by flash_change.
void FlashMeter::follow_luminance(Cell& cell, float luminance) const {
  cell.low = std::min(cell.low, luminance);
  cell.high = std::max(cell.high, luminance);
  Track& track = cell.general;
  const bool up = track.direction <= 0 && luminance - cell.low >= float(config_.flash_change) &&
                  cell.low < float(config_.flash_dark);
  const bool down = track.direction >= 0 && cell.high - luminance >= float(config_.flash_change) &&
                    luminance < float(config_.flash_dark);
  if (!up && !down) return;
  track.note(up ? 1 : -1, now_);
  cell.low = cell.high = luminance;
}

// A transition to or from a saturated red; the next one has to go the other way.
void FlashMeter::follow_hue(Cell& cell, const LinearColour& colour) const {
  const std::array<float, 2> at = chromaticity(colour);
  const bool red =
      red_share(colour) >= float(config_.red_share) && colour[0] - colour[1] - colour[2] >= kDarkestRed;
  const Hue hue = {at, distance(at, chromaticity({1, 0, 0})), red};
  if (!std::exchange(cell.seen, true)) cell.nearest = cell.farthest = hue;
  if (hue.distance < cell.nearest.distance) cell.nearest = hue;
  if (hue.distance > cell.farthest.distance) cell.farthest = hue;
  Track& track = cell.red;
  const bool to = track.direction <= 0 && hue.red && distance(hue.at, cell.farthest.at) > config_.red_change;
  const bool from =
      track.direction >= 0 && cell.nearest.red && distance(hue.at, cell.nearest.at) > config_.red_change;
  if (!to && !from) return;
  track.note(to ? 1 : -1, now_);
  cell.nearest = cell.farthest = hue;
}

// A flash is two transitions, so the allowed flashes take 2 n of them; the next begins one more.
bool FlashMeter::flashes_too_often(const Track& track) const {
  const auto more = int64_t(2 * config_.flashes) + 1;
  return track.count >= more && now_ - track.times[size_t((track.count - more) % 8)] < kSecond;
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

FlashShares FlashMeter::add(const std::vector<LinearColour>& cells, double seconds) {
  check(cells.size() == cells_.size(), "flash: ", cells.size(), " values for ", cells_.size(), " cells");
  now_ += seconds;
  std::vector<char> general(cells_.size()), red(cells_.size());
  for (size_t i = 0; i < cells_.size(); ++i) {
    follow_luminance(cells_[i], relative_luminance(cells[i]));
    follow_hue(cells_[i], cells[i]);
    general[i] = flashes_too_often(cells_[i].general);
    red[i] = flashes_too_often(cells_[i].red);
  }
  return {largest_share(general), largest_share(red)};
}

}  // namespace rivulet
