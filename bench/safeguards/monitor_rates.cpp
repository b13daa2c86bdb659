#include <algorithm>
#include <cmath>
#include <map>

#include "apps/bundled.h"
#include "apps/safeguards/monitor.h"
#include "apps/video.h"
#include "bench/safeguards/rates.h"
#include "models/editor.h"

namespace rivulet::bench {
namespace {

constexpr int64_t kClipFrames = 300, kEditFrames = 48;

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[size_t(q * double(values.size() - 1))];
}

struct Tally {
  std::map<std::string, int64_t> alarms;  // chunks with one, by kind
  int64_t chunks = 0, frames = 0;
  double milliseconds = 0;
  void watch(Monitor& m, const Tensor& source, const Tensor& edit, double seconds) {
    const Timer timer;
    for (const Alarm& a : m.check(source, edit, seconds)) ++alarms[name_of(a.kind)];
    m.shown(source, edit, seconds);
    milliseconds += timer.milliseconds();
    ++chunks;
    frames += edit.dim(0);
  }
  nlohmann::json json() const {
    return {{"chunks", chunks},
            {"frames", frames},
            {"chunks_with_alarm", alarms},
            {"ms_a_frame", milliseconds / double(std::max<int64_t>(frames, 1))}};
  }
};

nlohmann::json clips_as_they_are(const Clips& clips, double field) {
  MonitorConfig c = default_safeguards().monitor;
  c.flash_field = field;
  Tally tally;
  for (const std::string& path : clips) {
    const auto source = open_source(path, {.size = {256, 144}, .image_rate = {}});
    Monitor monitor(c);
    for (int64_t f = 0; f < kClipFrames; f += 3) {
      const Tensor frames = source->read(3);
      if (!frames) break;
      tally.watch(monitor, frames, frames, 1 / source->info().fps.value());
    }
  }
  return tally.json();
}

nlohmann::json edits(const Clips& clips) {
  const Editor editor = Editor::load(bundled_model());
  Tally tally;
  std::vector<double> distances;
  for (const std::string& path : clips)
    for (const char* text : {"make it night", "turn it into a pencil sketch", "invert the colours"}) {
      const auto source = open_source(path, {.size = {256, 144}, .image_rate = {}});
      Monitor monitor(default_safeguards().monitor);
      EditState state;
      const Prompt prompt = editor.encode(text);
      for (int64_t f = 0; f < kEditFrames; f += 3) {
        const Tensor frames = source->read(3);
        if (!frames || frames.dim(0) < 3) break;
        const Tensor edit = editor.step(frames, prompt, state).contiguous();
        tally.watch(monitor, frames, edit, 1 / source->info().fps.value());
        distances.push_back(structural_distance(cell_picture(frames.data<uint8_t>(), 144, 256),
                                                cell_picture(edit.data<uint8_t>(), 144, 256)));
      }
    }
  nlohmann::json j = tally.json();
  j["structural_distance"] = {{"median", quantile(distances, 0.5)},
                              {"p99", quantile(distances, 0.99)},
                              {"largest", quantile(distances, 1)}};
  return j;
}

// Pairs of frames of different clips, or far apart in one: what the bound on drift has to find.
nlohmann::json other_content(const Clips& clips) {
  std::vector<CellPicture> pictures;
  for (const std::string& path : clips) {
    const auto source = open_source(path, {.size = {256, 144}, .image_rate = {}});
    for (int i = 0; i < 6; ++i)
      if (const Tensor frames = source->read(60))
        pictures.push_back(cell_picture(frames.data<uint8_t>(), 144, 256));
  }
  int64_t found = 0, of = 0;
  std::vector<double> distances;
  for (const CellPicture& a : pictures)
    for (const CellPicture& b : pictures) {
      const double d = structural_distance(a, b);
      if (&a == &b || d == 0) continue;
      found += d > default_safeguards().monitor.drift;
      ++of;
      distances.push_back(d);
    }
  return {{"pairs", of},
          {"above_bound", found},
          {"p01", quantile(distances, 0.01)},
          {"median", quantile(distances, 0.5)}};
}

nlohmann::json made_up_flashing() {
  nlohmann::json rows;
  for (const double fps : {10.0, 25.0, 30.0, 60.0})
    for (const double rate : {1.0, 2.0, 3.0, 3.5, 4.0, 5.0, 7.5}) {
      if (2 * rate > fps) continue;
      FlashMeter meter(default_safeguards().monitor, 8, 8);
      double first = -1;
      for (int f = 0; f < int(4 * fps) && first < 0; ++f) {
        const bool bright = int(std::floor(2 * rate * (f + 0.5) / fps)) % 2 == 1;
        if (meter.add(std::vector<float>(64, bright ? 0.9f : 0.1f), 1 / fps) >= 0.25) first = f / fps;
      }
      rows.push_back({{"fps", fps}, {"flashes_a_second", rate}, {"alarm_after_s", first}});
    }
  return rows;
}

}  // namespace

nlohmann::json monitor_rates(const Clips& clips) {
  return {{"clips_as_they_are", clips_as_they_are(clips, 1)},
          {"clips_as_they_are_field_one_third", clips_as_they_are(clips, 1.0 / 3)},
          {"edits_by_brook", edits(clips)},
          {"other_content", other_content(clips)},
          {"made_up_flashing", made_up_flashing()}};
}

}  // namespace rivulet::bench
