// Clips and folders for the tests of the applications.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "apps/process.h"
#include "tests/fixtures.h"

namespace rivulet {

inline bool has_ffmpeg() {
  try {
    return !run_for_output({"ffmpeg", "-version"}).empty();
  } catch (const Error&) {
    return false;
  }
}

// Use as the first line of a test that needs ffmpeg.
#define NEEDS_FFMPEG()                           \
  if (!::rivulet::has_ffmpeg()) {                \
    MESSAGE("skipped: ffmpeg is not installed"); \
    return;                                      \
  }

inline void ffmpeg(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"ffmpeg", "-nostdin", "-v", "error", "-y"});
  run_for_output(arguments);
}

// One value of the first video stream (or of `stream`), as ffprobe prints it.
inline std::string probe_value(const std::string& path, const std::string& key,
                               const std::string& stream = "v:0") {
  std::string text = run_for_output({"ffprobe", "-v", "error", "-select_streams", stream, "-show_entries",
                                     "stream=" + key, "-of", "csv=p=0", path});
  while (!text.empty() && (text.back() == '\n' || text.back() == ',')) text.pop_back();
  return text;
}

// A moving, smooth, colourful picture: u8 [F, height, width, 3].
inline Tensor moving_picture(int64_t frames, int64_t height, int64_t width) {
  Tensor x({frames, height, width, 3}, DType::u8);
  uint8_t* p = x.data<uint8_t>();
  for (int64_t f = 0; f < frames; ++f)
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j)
        for (int c = 0; c < 3; ++c)
          *p++ =
              uint8_t(128 + 90 * std::sin(0.06 * double(j + 2 * f) + c) * std::cos(0.05 * double(i) + 2 * c));
  return x;
}

inline double psnr(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const Tensor x = a.contiguous(), y = b.contiguous();
  double sum = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double d = double(x.data<uint8_t>()[i]) - double(y.data<uint8_t>()[i]);
    sum += d * d;
  }
  return 10 * std::log10(255.0 * 255.0 * double(x.numel()) / std::max(sum, 1e-9));
}

}  // namespace rivulet
