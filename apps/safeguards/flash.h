// Photosensitive flashing by the two rules of WCAG 2.2 (success criterion 2.3.1) and Rec. ITU-R BT.1702.
//
// General flashes: a transition is a change of relative luminance by 0.1 or more between neighbouring
// extremes, the darker of them under 0.8 (BT.1702 states the same as 20 and 160 cd/m2 on a 200 cd/m2 screen).
// Red flashes: a transition leads to or from a saturated red, one with R / (R + G + B) of 0.8 or more in
// linear light, over more than 0.2 in the CIE 1976 UCS diagram (u', v'), whatever the luminance does; ISO
// 9241-391 has the same. A red with R - G - B under 20/320 is too dark to count (WCAG 2.0), and black, which
// has no chromaticity, counts as neutral.
//
// A flash is two opposing transitions. More than three flashes of either kind within any one second are not
// allowed where the flashing cells take up 25 % of the field together. The field is the picture (BT.1702) or
// any window of a third of its sides (WCAG's 341 x 256 of 1024 x 768).
//
// It judges each cell of a coarse grid by itself, so that a moving flash and one of the whole picture are the
// same to it, and fine patterns that average out inside a cell do not count, as the rule has it.
#pragma once

#include <array>
#include <vector>

#include "apps/safeguards/config.h"

namespace rivulet {

// A colour in linear light, 0..1, of sRGB's primaries.
using LinearColour = std::array<float, 3>;
float relative_luminance(const LinearColour& c);
// R / (R + G + B); 0 for black.
float red_share(const LinearColour& c);
// u', v' of the CIE 1976 UCS diagram; D65 for black.
std::array<float, 2> chromaticity(const LinearColour& c);

// The largest share of a field that has flashed more often than allowed within a second.
struct FlashShares {
  double general = 0, red = 0;
};

class FlashMeter {
 public:
  FlashMeter(const MonitorConfig& config, int columns, int rows);
  // The mean colours of the cells, `seconds` after the picture before; the shares of the second that ends
  // here.
  FlashShares add(const std::vector<LinearColour>& cells, double seconds);

 private:
  // Transitions of one kind in one cell.
  struct Track {
    int direction = 0;     // of the last transition
    double times[8] = {};  // of the last transitions, a ring
    int64_t count = 0;
    void note(int to, double now) { direction = to, times[size_t(count++ % 8)] = now; }
  };
  // Seen since the last transition, by its distance from the primary red in the diagram.
  struct Hue {
    std::array<float, 2> at = {};
    float distance = 0;
    bool red = false;
  };
  struct Cell {
    float low = 2, high = -1;  // extremes of luminance since the last general transition
    Hue nearest, farthest;     // the same of the hue, since the last red one
    bool seen = false;
    Track general, red;
  };
  void follow_luminance(Cell& cell, float luminance) const;
  void follow_hue(Cell& cell, const LinearColour& colour) const;
  bool flashes_too_often(const Track& track) const;
  double largest_share(const std::vector<char>& over) const;

  MonitorConfig config_;
  int columns_, rows_;
  double now_ = 0;
  std::vector<Cell> cells_;
};

}  // namespace rivulet
