// Frames at rest, u8 [F, H, W, 3], brought to another size.
#pragma once

#include <ostream>
#include <string>

#include "tensor/tensor.h"

namespace rivulet {

struct FrameSize {
  int64_t width = 0, height = 0;
  bool operator==(const FrameSize&) const = default;
};
inline std::ostream& operator<<(std::ostream& os, const FrameSize& size) {
  return os << size.width << 'x' << size.height;
}

// "640x360". Throws unless both are numbers in 1..16384.
FrameSize parse_size(const std::string& text);

// A size asked for stands for a clip of any orientation: a portrait clip gets it turned, so that the longer
// number goes with the longer side. 640x360 asked of a 1080x1920 clip is 360x640.
FrameSize orient(const FrameSize& asked, const FrameSize& clip);

// The size with both sides at the nearest multiple, at least one.
FrameSize nearest_multiple(const FrameSize& size, int64_t multiple);
// Odd sides lose their last row or column (a side of 1 becomes 2): what 4:2:0 video can hold.
FrameSize even(const FrameSize& size);

FrameSize size_of_frames(const Tensor& frames);

// Exactly this size, aspect ratio or not.
Tensor resize_frames(const Tensor& frames, const FrameSize& size);
// The largest centred part with the aspect ratio of `size`, resized to it: nothing is stretched.
Tensor fit_frames(const Tensor& frames, const FrameSize& size);

}  // namespace rivulet
