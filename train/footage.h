// An archive of short real clips and photos to cut training material from: one safetensors file with u8
// tensors [F, H, W, 3] named "clip.<name>" or "photo.<name>" (F = 1) and, for each, the metadata entries
// "<tensor>.origin" and "<tensor>.licence".
#pragma once

#include <string>
#include <vector>

#include "tensor/random.h"

namespace rivulet {

struct FootageItem {
  std::string name;  // with its "clip." or "photo." prefix
  std::string origin, licence;
  Tensor frames;  // u8 [F, H, W, 3]
};

// A camera gliding over an item. Positions are in pixels of the item; `scale` is item pixels per output
// pixel, so the window is scale * output size. Everything moves linearly from the first frame to the last.
struct CameraPath {
  int64_t item = 0;
  int64_t start = 0;  // first frame; playing turns back at both ends of the clip
  int direction = 1;  // 1 forwards, -1 backwards, 0 frozen
  bool mirrored = false;
  double x0 = 0, y0 = 0, scale0 = 1;  // centre and scale at the first frame
  double x1 = 0, y1 = 0, scale1 = 1;  // at the last
};

class Footage {
 public:
  // Throws with the path on a file without footage, a tensor that is no picture, or one without origin
  // or licence. The pictures stay in the mapped file.
  static Footage open(const std::string& path);
  explicit Footage(std::vector<FootageItem> items);

  const std::vector<FootageItem>& items() const { return items_; }

  // A random window inside the picture, blown up at most 1.4 times unless the item is too small for that.
  // Photos and half of the clips get a pan and a zoom.
  CameraPath random_path(Rng& rng, int64_t frames, int64_t height, int64_t width) const;
  // f32 [frames, height, width, 3] in [0, 1], sampled bilinearly and averaged where it shrinks.
  Tensor render(const CameraPath& path, int64_t frames, int64_t height, int64_t width) const;
  Tensor crop(Rng& rng, int64_t frames, int64_t height, int64_t width) const {
    return render(random_path(rng, frames, height, width), frames, height, width);
  }

 private:
  std::vector<FootageItem> items_;
  std::vector<double> share_;  // running sum of how often each item is taken
};

void save_footage(const std::string& path, const std::vector<FootageItem>& items);

}  // namespace rivulet
