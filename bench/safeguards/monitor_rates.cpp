#include <algorithm>
#include <cmath>
#include <map>

#include "apps/bundled.h"
#include "apps/safeguards/monitor.h"
#include "apps/video.h"
#include "bench/safeguards/rates.h"
#include "models/editor.h"
#include "ops/image_io.h"
#include "train/edit.h"
#include "train/instructions.h"

namespace rivulet::bench {
namespace {

constexpr FrameSize kSize = {256, 144};
constexpr int64_t kClipFrames = 300, kEditFrames = 24;

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[size_t(q * double(values.size() - 1))];
}

nlohmann::json spread(const std::vector<double>& values) {
  return {{"least", quantile(values, 0)},
          {"p01", quantile(values, 0.01)},
          {"median", quantile(values, 0.5)},
          {"p99", quantile(values, 0.99)},
          {"largest", quantile(values, 1)}};
}

CellPicture cells(const Tensor& frames, int64_t f) {
  const Tensor one = frames.select(0, f).contiguous();
  return cell_picture(one.data<uint8_t>(), one.dim(0), one.dim(1));
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
  void add(const Tally& other) {
    for (const auto& [kind, count] : other.alarms) alarms[kind] += count;
    chunks += other.chunks;
    frames += other.frames;
    milliseconds += other.milliseconds;
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
    const auto source = open_source(path, {.size = kSize, .image_rate = {}});
    Monitor monitor(c);
    for (int64_t f = 0; f < kClipFrames; f += 3) {
      const Tensor frames = source->read(3);
      if (!frames) break;
      tally.watch(monitor, frames, frames, 1 / source->info().fps.value());
    }
  }
  return tally.json();
}

struct Edited {
  nlohmann::json json;
  std::vector<double> distances;  // of every frame from its source
};

// Every look, one colour for another and no edit at all.
Edited edits(const Clips& clips) {
  const Editor editor = Editor::load(bundled_model());
  std::vector<std::string> names = look_names();
  names.insert(names.end(), {"red_to_blue", "keep"});
  Edited result;
  Tally all;
  for (const std::string& name : names) {
    const Prompt prompt = editor.encode(canonical_instruction(edit_named(name)));
    std::vector<double> distances;
    Tally tally;
    for (const std::string& path : clips) {
      const auto source = open_source(path, {.size = kSize, .image_rate = {}});
      Monitor monitor(default_safeguards().monitor);
      EditState state;
      for (int64_t f = 0; f < kEditFrames; f += 3) {
        const Tensor frames = source->read(3);
        if (!frames || frames.dim(0) < 3) break;
        const Tensor edit = editor.step(frames, prompt, state).contiguous();
        tally.watch(monitor, frames, edit, 1 / source->info().fps.value());
        for (int64_t i = 0; i < 3; ++i)
          distances.push_back(structural_distance(cells(frames, i), cells(edit, i)));
      }
    }
    nlohmann::json row = tally.json();
    row["structural_distance"] = spread(distances);
    result.json["looks"][name] = row;
    result.distances.insert(result.distances.end(), distances.begin(), distances.end());
    all.add(tally);
  }
  result.json["all"] = all.json();
  result.json["all"]["structural_distance"] = spread(result.distances);
  return result;
}

// Distances between pictures of different clips and photos: what the bound on drift has to find.
std::vector<double> between_unrelated(const Clips& clips, const std::vector<std::string>& photos) {
  std::vector<std::vector<CellPicture>> groups;
  for (const std::string& path : clips) {
    const auto source = open_source(path, {.size = kSize, .image_rate = {}});
    groups.emplace_back();
    for (int i = 0; i < 6; ++i)
      if (const Tensor frames = source->read(60)) groups.back().push_back(cells(frames, 0));
  }
  for (const std::string& path : photos)
    groups.push_back({cells(fit_frames(read_image(path).unsqueeze(0), kSize), 0)});
  std::vector<double> distances;
  for (const auto& from : groups)
    for (const auto& to : groups) {
      if (&from == &to) continue;
      for (const CellPicture& a : from)
        for (const CellPicture& b : to) distances.push_back(structural_distance(a, b));
    }
  return distances;
}

// For each bound: the share of unrelated pairs that it finds, and of edited frames that it would take for
// them.
nlohmann::json drift(const std::vector<double>& edited, const std::vector<double>& unrelated) {
  const auto above = [](const std::vector<double>& values, double bound) {
    return std::count_if(values.begin(), values.end(), [&](double d) { return d > bound; });
  };
  nlohmann::json rows;
  for (int percent = 10; percent <= 95; percent += 5) {
    const double bound = percent / 100.0;
    rows.push_back({{"bound", bound},
                    {"unrelated_found", above(unrelated, bound)},
                    {"edits_found", above(edited, bound)}});
  }
  const double bound = default_safeguards().monitor.drift;
  return {{"bound", bound},
          {"unrelated_pairs", unrelated.size()},
          {"unrelated_found", above(unrelated, bound)},
          {"unrelated_distance", spread(unrelated)},
          {"edited_frames", edited.size()},
          {"edits_found", above(edited, bound)},
          {"bounds", rows}};
}

nlohmann::json made_up_flashing(const LinearColour& a, const LinearColour& b, double FlashShares::*kind) {
  nlohmann::json rows;
  for (const double fps : {10.0, 25.0, 30.0, 60.0})
    for (const double rate : {1.0, 2.0, 3.0, 3.5, 4.0, 5.0, 7.5}) {
      if (2 * rate > fps) continue;
      FlashMeter meter(default_safeguards().monitor, 8, 8);
      double first = -1;
      for (int f = 0; f < int(4 * fps) && first < 0; ++f) {
        const bool on = int(std::floor(2 * rate * (f + 0.5) / fps)) % 2 == 1;
        if (meter.add(std::vector<LinearColour>(64, on ? b : a), 1 / fps).*kind >= 0.25) first = f / fps;
      }
      rows.push_back({{"fps", fps}, {"flashes_a_second", rate}, {"alarm_after_s", first}});
    }
  return rows;
}

}  // namespace

nlohmann::json monitor_rates(const Clips& clips, const std::vector<std::string>& photos) {
  const Edited edited = edits(clips);
  return {
      {"clips_as_they_are", clips_as_they_are(clips, 1)},
      {"clips_as_they_are_field_one_third", clips_as_they_are(clips, 1.0 / 3)},
      {"edits_by_brook", edited.json},
      {"drift", drift(edited.distances, between_unrelated(clips, photos))},
      {"made_up_flashing", made_up_flashing({0.1f, 0.1f, 0.1f}, {0.9f, 0.9f, 0.9f}, &FlashShares::general)},
      {"made_up_red_flashing", made_up_flashing({1, 0, 0}, {0, 0.2973f, 0}, &FlashShares::red)}};
}

}  // namespace rivulet::bench
