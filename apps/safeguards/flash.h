// Photosensitive flashing by the general-flash rule of WCAG 2.2 (success criterion 2.3.1) and Rec. ITU-R
// BT.1702. A transition is a change of relative luminance by 0.1 or more between neighbouring extremes, the
// darker of them under 0.8 (BT.1702 states the same as 20 and 160 cd/m2 on a 200 cd/m2 screen); a flash is
// two opposing transitions. More than three flashes within any one second are not allowed where the flashing
// cells take up 25 % of the field together. The field is the picture (BT.1702) or any window of a third of
// its sides (WCAG's 341 x 256 of 1024 x 768).
//
// It judges each cell of a coarse grid by itself, so that a moving flash and one of the whole picture are the
// same to it, and fine patterns that average out inside a cell do not count, as the rule has it.
#pragma once

#include <vector>

#include "apps/safeguards/config.h"

namespace rivulet {

class FlashMeter {
 public:
  FlashMeter(const MonitorConfig& config, int columns, int rows);
  // The relative luminance of the cells, `seconds` after the picture before. Returns the largest share of a
  // field that has flashed more often than allowed within the second that ends here.
  double add(const std::vector<float>& luminance, double seconds);

 private:
  struct Cell {
    float low = 2, high = -1;  // extremes since the last transition
    int direction = 0;         // of the last transition
    double times[8] = {};      // of the last transitions, a ring
    int64_t count = 0;
  };
  bool transition(Cell& cell, float luminance) const;
  bool flashes_too_often(const Cell& cell) const;
  double largest_share(const std::vector<char>& over) const;

  MonitorConfig config_;
  int columns_, rows_;
  double now_ = 0;
  std::vector<Cell> cells_;
};

}  // namespace rivulet
