#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "apps/process.h"
#include "apps/safeguards/config.h"
#include "apps/safeguards/watermark.h"
#include "apps/video.h"
#include "bench/safeguards/rates.h"
#include "tensor/random.h"

namespace rivulet::bench {
namespace {

constexpr FrameSize kSize = {256, 144};
constexpr int64_t kFrames = 96, kSegment = 48;
constexpr uint64_t kPayload = 0x5ca1ab1e0ddba11ull;

struct Treatment {
  const char *name, *scale;
  bool codec;
};
constexpr Treatment kTreatments[] = {
    {"half size", "scale=iw/2:ih/2", false},
    {"CRF 28", "null", true},
    {"half size and CRF 28", "scale=iw/2:ih/2", true},
};

double luma_error(const Tensor& a, const Tensor& b) {
  double sum = 0;
  const uint8_t *x = a.data<uint8_t>(), *y = b.data<uint8_t>();
  for (int64_t i = 0; i < a.numel(); i += 3) {
    const double d = 0.2126 * (x[i] - y[i]) + 0.7152 * (x[i + 1] - y[i + 1]) + 0.0722 * (x[i + 2] - y[i + 2]);
    sum += d * d;
  }
  return sum / double(a.numel() / 3);
}

double psnr(double error) { return 10 * std::log10(255.0 * 255.0 / std::max(error, 1e-9)); }

std::optional<MarkReading> read_frames(const Watermark& mark, const Tensor& frames) {
  MarkEvidence evidence;
  mark.gather(frames, evidence);
  return mark.read(evidence);
}

Tensor treated(const Tensor& frames, const Treatment& t) {
  const std::string stem =
      (std::filesystem::temp_directory_path() / ("rivulet_mark_" + std::to_string(getpid()))).string();
  const std::string in = stem + "_in.y4m", out = stem + (t.codec ? "_out.mp4" : "_out.y4m");
  VideoInfo info;
  info.size = size_of_frames(frames);
  const auto sink = open_sink(in, info);
  sink->write(frames);
  sink->finish();
  std::vector<std::string> argv = {"ffmpeg", "-nostdin", "-v", "error", "-y", "-i", in, "-vf", t.scale};
  if (t.codec) argv.insert(argv.end(), {"-c:v", "libx264", "-preset", "medium", "-crf", "28"});
  argv.push_back(out);
  run_for_output(argv);
  const Tensor result = open_source(out)->read(frames.dim(0));
  std::filesystem::remove(in);
  std::filesystem::remove(out);
  return result;
}

struct Count {
  int64_t right = 0, of = 0, wrong = 0;
  double bit_errors = 0;
  void add(const std::optional<MarkReading>& r) {
    ++of;
    right += r && r->payload == kPayload;
    wrong += r && r->payload != kPayload;
    bit_errors += r ? r->bit_errors : 0;
  }
  nlohmann::json json() const {
    return {{"readings", of},
            {"right", right},
            {"another_payload", wrong},
            {"bits_corrected_of_right", right ? bit_errors / double(right) : 0}};
  }
};

nlohmann::json survival(const Watermark& mark, const Clips& clips) {
  struct Row {
    Count frame, segment, clip;
  };
  std::vector<Row> rows(std::size(kTreatments));
  double least = 1e9, milliseconds = 0;
  int64_t frames = 0;
  for (const std::string& path : clips) {
    const auto source = open_source(path, {.size = kSize, .image_rate = {}});
    const Tensor clip = source->read(kFrames);
    if (!clip || clip.dim(0) < kSegment) continue;
    const Timer timer;
    const Tensor marked = mark.mark(clip, kPayload);
    milliseconds += timer.milliseconds();
    frames += clip.dim(0);
    for (int64_t f = 0; f < clip.dim(0); ++f)
      least = std::min(least, psnr(luma_error(clip.slice(0, f, f + 1).contiguous(),
                                              marked.slice(0, f, f + 1).contiguous())));
    for (size_t t = 0; t < rows.size(); ++t) {
      const Tensor seen = treated(marked, kTreatments[t]);
      for (int64_t f = 0; f < seen.dim(0); ++f) rows[t].frame.add(read_frames(mark, seen.slice(0, f, f + 1)));
      for (int64_t f = 0; f + kSegment <= seen.dim(0); f += kSegment)
        rows[t].segment.add(read_frames(mark, seen.slice(0, f, f + kSegment)));
      rows[t].clip.add(read_frames(mark, seen));
    }
  }
  nlohmann::json j = {{"size", "256x144"},
                      {"frames", frames},
                      {"least_psnr_db", least},
                      {"mark_ms_a_frame", milliseconds / double(frames)}};
  for (size_t t = 0; t < rows.size(); ++t)
    j["treatments"].push_back({{"treatment", kTreatments[t].name},
                               {"one_frame", rows[t].frame.json()},
                               {"48_frames", rows[t].segment.json()},
                               {"up_to_96_frames", rows[t].clip.json()}});
  return j;
}

// A part of a frame, at random place, size, mirroring, brightness: another picture to the reader.
Tensor varied(const Tensor& frame, Rng& random) {
  float r[6];
  for (float& x : r) x = float(random.uniform());
  const int64_t H = frame.dim(1), W = frame.dim(2);
  const auto h = int64_t(double(H) * (0.6 + 0.4 * r[0])), w = int64_t(double(W) * (0.6 + 0.4 * r[1]));
  const auto y = int64_t(double(H - h) * r[2]), x = int64_t(double(W - w) * r[3]);
  Tensor part = resize_frames(frame.slice(1, y, y + h).slice(2, x, x + w).contiguous(), kSize);
  uint8_t* p = part.data<uint8_t>();
  const float gain = 0.7f + 0.5f * r[4];
  for (int64_t i = 0; i < part.numel(); ++i) p[i] = uint8_t(std::clamp(float(p[i]) * gain, 0.f, 255.f));
  if (r[5] < 0.5f)
    for (int64_t row = 0; row < kSize.height; ++row)
      for (int64_t a = 0, b = kSize.width - 1; a < b; ++a, --b)
        for (int c = 0; c < 3; ++c)
          std::swap(p[(row * kSize.width + a) * 3 + c], p[(row * kSize.width + b) * 3 + c]);
  return part;
}

nlohmann::json clean(const Watermark& mark, const Clips& clips, int64_t wanted) {
  Rng random{7};
  int64_t as_they_are = 0, varied_frames = 0, positives = 0;
  double milliseconds = 0;
  while (as_they_are + varied_frames < wanted) {
    const bool again = as_they_are > 0;
    for (const std::string& path : clips) {
      const auto source = open_source(path, {.size = {320, 180}, .image_rate = {}});
      while (as_they_are + varied_frames < wanted) {
        const Tensor frames = source->read(8);
        if (!frames) break;
        for (int64_t f = 0; f < frames.dim(0) && as_they_are + varied_frames < wanted; ++f) {
          const Tensor frame = frames.slice(0, f, f + 1).contiguous();
          for (const Tensor& one : {frame, varied(frame, random)}) {
            if (again && one.shape() == frame.shape()) continue;
            const Timer timer;
            positives += read_frames(mark, one).has_value();
            milliseconds += timer.milliseconds();
            ++(one.shape() == frame.shape() ? as_they_are : varied_frames);
          }
        }
      }
    }
  }
  return {{"frames_as_they_are", as_they_are},
          {"frames_varied", varied_frames},
          {"false_positives", positives},
          {"chance_by_design", std::pow(2.0, -26)},
          {"read_ms_a_frame", milliseconds / double(as_they_are + varied_frames)}};
}

}  // namespace

nlohmann::json mark_rates(const Clips& clips, int64_t clean_frames) {
  const MarkConfig c = default_safeguards().mark;
  const Watermark mark(c.key, c.psnr);
  return {{"marked", survival(mark, clips)}, {"clean", clean(mark, clips, clean_frames)}};
}

}  // namespace rivulet::bench
