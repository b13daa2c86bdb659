#include "apps/safeguards/monitor.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace rivulet {
namespace {

constexpr int kColumns = CellPicture::kColumns, kRows = CellPicture::kRows, kCells = CellPicture::kCells;

// sRGB's transfer function, as WCAG's relative luminance uses it.
const std::vector<float>& linear_values() {
  static const std::vector<float> table = [] {
    std::vector<float> t(256);
    for (size_t i = 0; i < t.size(); ++i) {
      const double v = double(i) / 255;
      t[i] = float(v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4));
    }
    return t;
  }();
  return table;
}

double mean(const std::vector<float>& values) {
  double sum = 0;
  for (float v : values) sum += v;
  return values.empty() ? 0 : sum / double(values.size());
}

double mean_change(const CellPicture& a, const CellPicture& b) {
  double sum = 0;
  for (size_t i = 0; i < a.luma.size(); ++i) sum += std::abs(a.luma[i] - b.luma[i]);
  return sum / kCells;
}

// Size of the gradient between neighbouring cells.
std::vector<float> contrast(const std::vector<float>& luma) {
  std::vector<float> c;
  for (int y = 0; y + 1 < kRows; ++y)
    for (int x = 0; x + 1 < kColumns; ++x) {
      const size_t i = size_t(y * kColumns + x);
      c.push_back(std::hypot(luma[i + 1] - luma[i], luma[i + kColumns] - luma[i]));
    }
  return c;
}

Alarm alarm(Trouble kind, double value, double limit, const std::string& what) {
  std::ostringstream text;
  text.precision(3);
  text << "the edit " << what << "; the source is shown instead";
  return {kind, value, limit, text.str()};
}

const uint8_t* frame_of(const Tensor& frames, int64_t f) {
  return frames.data<uint8_t>() + f * frames.dim(1) * frames.dim(2) * 3;
}

CellPicture cells_of(const Tensor& frames, int64_t f) {
  return cell_picture(frame_of(frames, f), frames.dim(1), frames.dim(2));
}

}  // namespace

const char* name_of(Trouble trouble) {
  switch (trouble) {
    case Trouble::not_finite:
      return "not_finite";
    case Trouble::black:
      return "black";
    case Trouble::frozen:
      return "frozen";
    case Trouble::flash:
      return "flash";
    case Trouble::red_flash:
      return "red_flash";
    case Trouble::drift:
      return "drift";
  }
  return "";
}

CellPicture cell_picture(const uint8_t* rgb, int64_t height, int64_t width) {
  CellPicture p{std::vector<float>(kCells, 0.f), std::vector<LinearColour>(kCells, LinearColour{})};
  std::vector<float> pixels(kCells, 0.f);
  const std::vector<float>& linear = linear_values();
  // Small frames fill several cells with one pixel.
  const int64_t h = std::max<int64_t>(height, kRows), w = std::max<int64_t>(width, kColumns);
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x) {
      const uint8_t* c = rgb + 3 * (y * height / h * width + x * width / w);
      const size_t cell = size_t(y * kRows / h * kColumns + x * kColumns / w);
      p.luma[cell] += (0.2126f * c[0] + 0.7152f * c[1] + 0.0722f * c[2]) / 255;
      for (size_t k = 0; k < 3; ++k) p.light[cell][k] += linear[c[k]];
      ++pixels[cell];
    }
  for (size_t i = 0; i < kCells; ++i) {
    p.luma[i] /= pixels[i];
    for (float& v : p.light[i]) v /= pixels[i];
  }
  return p;
}

double structural_distance(const CellPicture& source, const CellPicture& edit) {
  const std::vector<float> a = contrast(source.luma), b = contrast(edit.luma);
  const double ma = mean(a), mb = mean(b);
  double aa = 0, bb = 0, ab = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    aa += (a[i] - ma) * (a[i] - ma);
    bb += (b[i] - mb) * (b[i] - mb);
    ab += (a[i] - ma) * (b[i] - mb);
  }
  // Less than a grey level of contrast is no structure to compare.
  if (aa < double(a.size()) * std::pow(1.0 / 255, 2)) return 0;
  return bb < 1e-12 ? 1 : 1 - std::max(0.0, ab / std::sqrt(aa * bb));
}

Monitor::Memory::Memory(const MonitorConfig& config) : flash(config, kColumns, kRows) {}

Monitor::Monitor(const MonitorConfig& config) : config_(config), memory_(config) {}

void Monitor::reset() { memory_ = Memory(config_); }

std::vector<Alarm> Monitor::look(Memory& memory, const Tensor& source, const Tensor& edit,
                                 double seconds) const {
  std::vector<Alarm> alarms;
  const auto raise = [&](Trouble kind, double value, double limit, const std::string& what) {
    for (const Alarm& a : alarms)
      if (a.kind == kind) return;
    alarms.push_back(alarm(kind, value, limit, what));
  };
  for (int64_t f = 0; f < edit.dim(0); ++f) {
    const CellPicture s = cells_of(source, f), e = cells_of(edit, f);
    const FlashShares flashing = memory.flash.add(e.light, seconds);
    if (flashing.general >= config_.flash_area)
      raise(Trouble::flash, flashing.general, config_.flash_area, "flashes more often than is safe");
    if (flashing.red >= config_.flash_area)
      raise(Trouble::red_flash, flashing.red, config_.flash_area, "flashes red more often than is safe");
    const double luma = mean(e.luma);
    if (luma < config_.black_luma && mean(s.luma) >= 2 * config_.black_luma)
      raise(Trouble::black, luma, config_.black_luma, "is black");
    const double distance = structural_distance(s, e);
    if (distance > config_.drift)
      raise(Trouble::drift, distance, config_.drift, "has lost the source's structure");
    if (!memory.last_edit.luma.empty()) {
      const bool stuck = mean_change(e, memory.last_edit) < config_.still / 10 &&
                         mean_change(s, memory.last_source) >= config_.still;
      memory.frozen = stuck ? memory.frozen + seconds : 0;
      if (memory.frozen >= config_.frozen_seconds)
        raise(Trouble::frozen, memory.frozen, config_.frozen_seconds, "stands still while the source moves");
    }
    memory.last_source = s;
    memory.last_edit = e;
  }
  return alarms;
}

std::vector<Alarm> Monitor::check(const Tensor& source, const Tensor& edit, double seconds) const {
  Memory trial = memory_;
  return look(trial, source, edit, seconds);
}

void Monitor::shown(const Tensor& source, const Tensor& frames, double seconds) {
  look(memory_, source, frames, seconds);
}

}  // namespace rivulet
