#include "apps/safeguards/block_waves.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tensor/error.h"

namespace rivulet {

BlockWaves::Side BlockWaves::side(int64_t pixels, int64_t blocks, int half_waves) {
  Side s;
  const double k = std::numbers::pi * half_waves, per_pixel = double(blocks) / double(pixels);
  for (int64_t x = 0; x < pixels; ++x) {
    const double begin = double(x) * per_pixel, end = double(x + 1) * per_pixel;
    s.block.push_back(std::min(int64_t(begin), blocks - 2));
    for (int64_t b = s.block.back(); b < s.block.back() + 2; ++b) {
      const double from = std::clamp(begin - double(b), 0.0, 1.0), to = std::clamp(end - double(b), 0.0, 1.0);
      const double integral = (std::cos(k * from) - std::cos(k * to)) / k;
      s.wave.push_back(float(integral / per_pixel));
      s.dual.push_back(float(2 * integral));  // the sine's square has the mean 1/2
    }
  }
  return s;
}

bool BlockWaves::fit(int64_t height, int64_t width) {
  return std::max(height, width) >= 4 * kLong && std::min(height, width) >= 4 * kShort;
}

BlockWaves::BlockWaves(int64_t height, int64_t width) : height_(height), width_(width) {
  check(fit(height, width), "watermark: frames of ", width, "x", height, " are too small, they need ",
        4 * kLong, "x", 4 * kShort);
  const bool wide = width >= height;
  columns_ = wide ? kLong : kShort;
  rows_ = wide ? kShort : kLong;
  across_ = side(width, columns_, wide ? 2 : 1);
  down_ = side(height, rows_, wide ? 1 : 2);
}

std::vector<float> BlockWaves::analyse(const std::vector<float>& luma) const {
  std::vector<float> result(static_cast<size_t>(kBlocks), 0.f), row(static_cast<size_t>(columns_));
  for (int64_t y = 0; y < height_; ++y) {
    std::fill(row.begin(), row.end(), 0.f);
    for (int64_t x = 0; x < width_; ++x) {
      const float value = luma[size_t(y * width_ + x)];
      float* block = &row[size_t(across_.block[size_t(x)])];
      block[0] += value * across_.dual[size_t(2 * x)];
      block[1] += value * across_.dual[size_t(2 * x + 1)];
    }
    for (int64_t k = 0; k < 2; ++k) {
      const float dual = down_.dual[size_t(2 * y + k)];
      float* to = &result[size_t((down_.block[size_t(y)] + k) * columns_)];
      for (size_t i = 0; i < row.size(); ++i) to[i] += dual * row[i];
    }
  }
  return result;
}

std::vector<float> BlockWaves::synthesise(const std::vector<float>& amplitudes) const {
  std::vector<float> luma(size_t(height_ * width_)), row(static_cast<size_t>(columns_));
  for (int64_t y = 0; y < height_; ++y) {
    const float *wave = &down_.wave[size_t(2 * y)],
                *from = &amplitudes[size_t(down_.block[size_t(y)] * columns_)];
    for (size_t i = 0; i < row.size(); ++i) row[i] = wave[0] * from[i] + wave[1] * from[i + row.size()];
    for (int64_t x = 0; x < width_; ++x) {
      const float* block = &row[size_t(across_.block[size_t(x)])];
      luma[size_t(y * width_ + x)] =
          block[0] * across_.wave[size_t(2 * x)] + block[1] * across_.wave[size_t(2 * x + 1)];
    }
  }
  return luma;
}

}  // namespace rivulet
