// Charts as inline SVG, for a report that is one file.
#pragma once

#include <string>
#include <vector>

namespace rivulet {

// Text as it may stand in HTML.
std::string html_escape(const std::string& text);
// Three significant digits: 0.00123, 12.3, 4560.
std::string short_number(double x);

struct Axis {
  std::string label;
  double low = 0, high = 1;
  bool log = false;
};
// An axis that holds all values with a little room; logarithmic only where all are positive.
Axis axis_for(std::string label, const std::vector<double>& values, bool log = false);

struct Point {
  double x = 0, y = 0;
  std::string title = {};     // shown under the pointer
  double low = 0, high = -1;  // an error bar where low <= high
};

// A chart with two axes. Colours are CSS colours; what lies outside the axes is cut off.
class Plot {
 public:
  Plot(Axis x, Axis y, double width = 640, double height = 420);
  void line(const std::vector<Point>& points, const std::string& colour, const std::string& name = "",
            bool dashed = false);
  // Corners only where the value changes: for what holds up to the next point.
  void stairs(const std::vector<Point>& points, const std::string& colour, const std::string& name = "");
  void dots(const std::vector<Point>& points, const std::string& colour, const std::string& name = "",
            double radius = 4);
  void label(double x, double y, const std::string& text);
  // Names at the bottom instead of the top; before the first name.
  void names_below() { below_ = true; }
  std::string svg() const;

 private:
  double px(double x) const;
  double py(double y) const;
  void legend(const std::string& colour, const std::string& name);
  Axis x_, y_;
  double width_, height_;
  std::string body_, legend_, labels_;
  int names_ = 0;
  bool below_ = false;
};

// A table of coloured cells. values[row][column] in [0, 1] shades the cell, NaN leaves it empty; `titles`
// show under the pointer, `marks` stand in the cell.
struct HeatMap {
  std::vector<std::string> rows, columns;
  std::vector<std::vector<double>> values;
  std::vector<std::vector<std::string>> titles, marks;
};
std::string svg_heat_map(const HeatMap& map);

}  // namespace rivulet
