// One wave in the luma of each block of a grid that covers the frame: in a block of unit sides,
//   sin(2 pi s) sin(pi t),   s along the longer side of the frame, t along the shorter.
// The grid is counted in blocks per side, so the same picture at another size has the same amplitudes. The
// waves vanish at the borders of their block, so that changing them leaves no edges, and a block that does
// not change from frame to frame keeps its amplitude whatever moves elsewhere, as a video coder keeps its
// pixels.
#pragma once

#include <cstdint>
#include <vector>

namespace rivulet {

class BlockWaves {
 public:
  static constexpr int64_t kLong = 16, kShort = 9;  // blocks along the longer and the shorter side
  static constexpr int64_t kBlocks = kLong * kShort;

  // Each side of the frame needs 4 pixels a block.
  static bool fit(int64_t height, int64_t width);
  BlockWaves(int64_t height, int64_t width);

  int64_t height() const { return height_; }
  int64_t width() const { return width_; }
  // The amplitudes, one a block, of luma [height, width].
  std::vector<float> analyse(const std::vector<float>& luma) const;
  // The sum of the waves with these amplitudes.
  std::vector<float> synthesise(const std::vector<float>& amplitudes) const;

 private:
  // One side of the frame. A pixel may straddle two blocks: `block` is the first of the two that it is given,
  // and the tables hold the sines of both, averaged over the pixel (wave) and integrated over it (dual).
  // Integrals make a flat picture exactly 0 at every size.
  struct Side {
    std::vector<int64_t> block;
    std::vector<float> wave, dual;  // [pixels, 2]
  };
  static Side side(int64_t pixels, int64_t blocks, int half_waves);

  int64_t height_, width_, columns_, rows_;
  Side across_, down_;
};

}  // namespace rivulet
