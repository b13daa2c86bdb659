#include "apps/frames.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "ops/image.h"
#include "ops/image_io.h"

namespace rivulet {
namespace {

// The whole of `text` as a side length, 0 if it is not one.
int64_t parse_side(std::string_view text) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  const bool good = error == std::errc() && end == text.data() + text.size() && n >= 1 && n <= kMaxImageSide;
  return good ? n : 0;
}

void check_frames(const Tensor& frames, const char* who) {
  check(frames.dtype() == DType::u8 && frames.dims() == 4 && frames.dim(3) == 3 && frames.numel() > 0, who,
        ": needs u8 frames [F, H, W, 3], got ", frames.dtype(), " ", frames.shape());
}

}  // namespace

FrameSize parse_size(const std::string& text) {
  const std::string_view all = text;
  const size_t x = all.find('x');
  FrameSize size;
  if (x != all.npos) size = {parse_side(all.substr(0, x)), parse_side(all.substr(x + 1))};
  check(size.width > 0 && size.height > 0, "size '", text, "' is not WxH with sides of 1 to ", kMaxImageSide);
  return size;
}

FrameSize orient(const FrameSize& asked, const FrameSize& clip) {
  const bool turn = (asked.width > asked.height && clip.width < clip.height) ||
                    (asked.width < asked.height && clip.width > clip.height);
  return turn ? FrameSize{asked.height, asked.width} : asked;
}

FrameSize nearest_multiple(const FrameSize& size, int64_t multiple) {
  const auto round = [&](int64_t n) {
    return std::max<int64_t>(1, (n + multiple / 2) / multiple) * multiple;
  };
  return {round(size.width), round(size.height)};
}

FrameSize even(const FrameSize& size) {
  const auto floor = [](int64_t n) { return std::max<int64_t>(2, n / 2 * 2); };
  return {floor(size.width), floor(size.height)};
}

FrameSize size_of_frames(const Tensor& frames) { return {frames.dim(2), frames.dim(1)}; }

Tensor resize_frames(const Tensor& frames, const FrameSize& size) {
  check_frames(frames, "resize_frames");
  if (size_of_frames(frames) == size) return frames;
  const NoGrad off;
  return unit_to_u8(resize(u8_to_unit(frames), size.height, size.width));
}

Tensor fit_frames(const Tensor& frames, const FrameSize& size) {
  check_frames(frames, "fit_frames");
  const double w = double(frames.dim(2)), h = double(frames.dim(1));
  const double scale = std::min(w / double(size.width), h / double(size.height));
  const auto part = [&](int64_t side, double limit) {
    return std::clamp<int64_t>(std::llround(double(side) * scale), 1, int64_t(limit));
  };
  const int64_t width = part(size.width, w), height = part(size.height, h);
  return resize_frames(
      crop(frames, (frames.dim(1) - height) / 2, (frames.dim(2) - width) / 2, height, width).contiguous(),
      size);
}

}  // namespace rivulet
