// Watching what is about to be shown. One Monitor sees the frames of one stream in order.
#pragma once

#include <string>
#include <vector>

#include "apps/safeguards/config.h"
#include "apps/safeguards/flash.h"
#include "tensor/tensor.h"

namespace rivulet {

enum class Trouble { not_finite, black, frozen, flash, red_flash, drift };
const char* name_of(Trouble trouble);

struct Alarm {
  Trouble kind;
  double value = 0, limit = 0;  // what was measured and the bound that it crossed
  std::string text;             // one sentence for the viewer
};

// A picture as the monitors see it: mean luma (0..1, gamma as it is) and mean colour in linear light of
// kColumns x kRows cells that cover the frame evenly.
struct CellPicture {
  static constexpr int kColumns = 64, kRows = 36, kCells = kColumns * kRows;
  std::vector<float> luma;
  std::vector<LinearColour> light;
};
CellPicture cell_picture(const uint8_t* rgb, int64_t height, int64_t width);

// 1 - the correlation of the local contrast (gradient magnitude of the cells' luma) of two pictures, 0..1.
// New colours, inverted ones and another exposure keep it near 0; other content brings it near 1. 0 when the
// first picture has no structure to compare.
double structural_distance(const CellPicture& source, const CellPicture& edit);

class Monitor {
 public:
  explicit Monitor(const MonitorConfig& config);
  // What is wrong with showing these frames next; nothing is remembered until shown() is called.
  // u8 [F, H, W, 3] of one size; seconds from one frame to the next.
  std::vector<Alarm> check(const Tensor& source, const Tensor& edit, double seconds) const;
  // The frames that were shown, of a shape with those of the source.
  void shown(const Tensor& source, const Tensor& frames, double seconds);
  void reset();

 private:
  struct Memory {
    explicit Memory(const MonitorConfig& config);
    FlashMeter flash;
    CellPicture last_source, last_edit;
    double frozen = 0;  // seconds
  };
  std::vector<Alarm> look(Memory& memory, const Tensor& source, const Tensor& edit, double seconds) const;
  MonitorConfig config_;
  Memory memory_;
};

}  // namespace rivulet
