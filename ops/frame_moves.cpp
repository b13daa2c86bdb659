#include "ops/frame_moves.h"

#include <algorithm>
#include <cmath>

namespace rivulet {
namespace cpu {
namespace {

float* pixel(const Frames& f, int64_t t, int64_t y, int64_t x) {
  const int16_t at = f.at[size_t(t)];
  const Tensor& s = f.stores[at < 0];
  const int64_t place = at < 0 ? -1 - at : at;
  return s.data<float>() + ((place * s.dim(1) + y + f.rim) * s.dim(2) + x + f.rim) * s.dim(3);
}

// f(t, y, x) for every pixel.
template <class F>
void each_pixel(int64_t frames, int64_t height, int64_t width, F&& f) {
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) f(t, y, x);
}

struct Cell {
  int64_t t, y, x;
  Cell(int64_t cell, const BlockSize& b) : t(cell / (b[1] * b[2])), y(cell / b[2] % b[1]), x(cell % b[2]) {}
};

}  // namespace

void patch_frames(const Tensor& pixels, int64_t p, const Frames& to) {
  const int64_t H = to.height(), W = to.width();
  Tensor dense({to.count(), H, W, to.channels()});
  const bool bytes = pixels.dtype() == DType::u8;
  float* out = dense.data<float>();
  each_pixel(to.count(), H, W, [&](int64_t t, int64_t y, int64_t x) {
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t dx = 0; dx < p; ++dx)
        for (int64_t dy = 0; dy < p; ++dy) {
          const int64_t i = (((t * H + y) * p + dy) * W * p + x * p + dx) * 3 + c;
          *out++ = bytes ? float(pixels.data<uint8_t>()[i]) * (1 / 127.5f) - 1 : pixels.data<float>()[i];
        }
  });
  copy_frames(Frames(dense), to);
}

void unpatch_frames(const Frames& x, int64_t p, const Tensor& pixels) {
  const bool bytes = pixels.dtype() == DType::u8;
  int64_t i = 0;
  each_pixel(x.count(), x.height() * p, x.width() * p, [&](int64_t t, int64_t y, int64_t col) {
    const float* from = pixel(x, t, y / p, col / p) + col % p * p + y % p;
    for (int64_t c = 0; c < 3; ++c, ++i) {
      const float v = from[c * p * p];
      if (bytes)
        pixels.data<uint8_t>()[i] = uint8_t(std::clamp(127.5f * v + 127.5f, 0.f, 255.f));
      else
        pixels.data<float>()[i] = v;
    }
  });
}

void skip_to_depth(const Frames& x, const Tensor& position, const BlockSize& b, const Tensor& out) {
  const int64_t cells = b[0] * b[1] * b[2], c_out = out.dim(3), group = x.channels() * cells / c_out,
                n = c_out / cells;
  float* to = out.data<float>();
  each_pixel(out.dim(0), out.dim(1), out.dim(2), [&](int64_t t, int64_t y, int64_t col) {
    for (int64_t place = 0; place < c_out; ++place) {
      const int64_t o = place % n * cells + place / n;
      float sum = 0;
      for (int64_t i = o * group; i < (o + 1) * group; ++i) {
        const Cell d(i % cells, b);
        sum += pixel(x, t * b[0] + d.t, y * b[1] + d.y, col * b[2] + d.x)[position.data<int32_t>()[i / cells]];
      }
      *to++ = sum / float(group);
    }
  });
}

void skip_to_space(const Frames& x, const BlockSize& b, int64_t drop, const Tensor& out) {
  const int64_t cells = b[0] * b[1] * b[2], c_out = out.dim(3), channels = x.channels() / cells;
  float* to = out.data<float>();
  each_pixel(out.dim(0), out.dim(1), out.dim(2), [&](int64_t t, int64_t y, int64_t col) {
    const int64_t at = t + drop, cell = (at % b[0] * b[1] + y % b[1]) * b[2] + col % b[2];
    const float* from = pixel(x, at / b[0], y / b[1], col / b[2]);
    for (int64_t o = 0; o < c_out; ++o) *to++ = from[o % channels * cells + cell];
  });
}

}  // namespace cpu

namespace {

void check_pixels(const char* who, const Frames& f, int64_t p, const Tensor& pixels) {
  check(pixels.shape() == Shape{f.count(), f.height() * p, f.width() * p, 3} && f.channels() == 3 * p * p &&
            (pixels.dtype() == DType::u8 || pixels.dtype() == DType::f32) && pixels.is_contiguous() &&
            pixels.device() == f.any().device(),
        who, ": pixels ", pixels.dtype(), " ", pixels.shape(), " do not fit ", f.count(), " frames of ", f.height(),
        "x", f.width(), "x", f.channels());
}

void check_skip(const Frames& x, const Tensor& out) {
  check(out.dims() == 4 && out.is_contiguous() && out.dtype() == x.any().dtype() &&
            out.device() == x.any().device(),
        "skip: out is ", out.dtype(), " ", out.shape(), ", x ", x.any().dtype());
}

}  // namespace

void patch_frames(const Tensor& pixels, int64_t p, const Frames& to) {
  check_pixels("patch_frames", to, p, pixels);
  ON_DEVICE(pixels, patch_frames(pixels, p, to));
}

void unpatch_frames(const Frames& x, int64_t p, const Tensor& pixels) {
  check_pixels("unpatch_frames", x, p, pixels);
  ON_DEVICE(pixels, unpatch_frames(x, p, pixels));
}

void skip_to_depth(const Frames& x, const Tensor& position, const BlockSize& b, const Tensor& out) {
  check_skip(x, out);
  const int64_t cells = b[0] * b[1] * b[2];
  check(x.count() == out.dim(0) * b[0] && x.height() == out.dim(1) * b[1] && x.width() == out.dim(2) * b[2] &&
            out.dim(3) % cells == 0 && x.channels() * cells % out.dim(3) == 0 &&
            position.shape() == Shape{x.channels()} && position.dtype() == DType::i32,
        "skip_to_depth: out has shape ", out.shape(), ", x ", x.count(), " frames of ", x.any().shape());
  ON_DEVICE(out, skip_to_depth(x, position, b, out));
}

void skip_to_space(const Frames& x, const BlockSize& b, int64_t drop, const Tensor& out) {
  check_skip(x, out);
  const int64_t cells = b[0] * b[1] * b[2];
  check(x.count() * b[0] - drop == out.dim(0) && x.height() * b[1] == out.dim(1) &&
            x.width() * b[2] == out.dim(2) && x.channels() % cells == 0 &&
            out.dim(3) % (x.channels() / cells) == 0 && (cells & (cells - 1)) == 0 && cells <= 8,
        "skip_to_space: out has shape ", out.shape(), ", x ", x.count(), " frames of ", x.any().shape());
  ON_DEVICE(out, skip_to_space(x, b, drop, out));
}

}  // namespace rivulet
