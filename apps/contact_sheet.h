// Pictures that put a clip and its edits beside each other, with labels.
#pragma once

#include <string>
#include <vector>

#include "apps/frames.h"

namespace rivulet {

// Draws ASCII text (other bytes become '?') with its upper left corner at (x, y) into u8 [H, W, 3], in white;
// a letter is about 7 * scale pixels high. Text that leaves `width` pixels ends in "...".
void draw_text(const Tensor& image, int64_t x, int64_t y, const std::string& text, int64_t scale,
               int64_t width);

// A labelled row of frames, u8 [T, H, W, 3].
struct Strip {
  std::string label;
  Tensor frames;
};
// Strips below each other, one column per time (given in seconds): u8 [H, W, 3]. Frames are at most
// 320 pixels a side; every strip has as many as there are times.
Tensor contact_sheet(const std::vector<Strip>& strips, const std::vector<double>& seconds);

// Gathers evenly spaced frames of strips whose length is not known beforehand.
class SheetSampler {
 public:
  explicit SheetSampler(std::vector<std::string> labels, int64_t columns = 5);
  // The next frames of every strip, each u8 [F, H, W, 3] with the same F.
  void add(const Tensors& strips);
  Tensor sheet(double frames_per_second) const;

 private:
  struct Moment {
    int64_t index;
    Tensors frames;  // one [1, h, w, 3] per strip
  };
  std::vector<std::string> labels_;
  int64_t columns_, seen_ = 0, stride_ = 1;
  std::vector<Moment> kept_;  // the frames at multiples of stride_
};

// Clips beside each other under their labels, in a grid that is no wider than it must be: up to three in a
// row, four as two by two; portrait clips in one row of up to four.
FrameSize side_by_side_size(int64_t clips, const FrameSize& clip);
// The strips have frames of one shape [F, H, W, 3]; the result is [F, H', W', 3].
Tensor side_by_side(const std::vector<Strip>& strips);

}  // namespace rivulet
