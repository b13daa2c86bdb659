#include "quant/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace rivulet {
namespace {

constexpr double kLeft = 76, kRight = 16, kTop = 14, kBottom = 48;

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", x);
  return text;
}

std::string tick_text(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

template <class... Parts>
std::string join(const Parts&... parts) {
  std::string out;
  ((out += parts), ...);
  return out;
}

std::string text_at(double x, double y, const std::string& text, const char* more) {
  return join("<text x=\"", number(x), "\" y=\"", number(y), "\" ", more, ">", html_escape(text),
              "</text>\n");
}

// Round values inside an axis.
std::vector<double> ticks(const Axis& a) {
  std::vector<double> out;
  if (a.log) {
    const double decades = std::log10(a.high / a.low);
    const std::vector<double> steps = decades > 2.5   ? std::vector<double>{1}
                                      : decades > 1.2 ? std::vector<double>{1, 3}
                                                      : std::vector<double>{1, 2, 3, 5, 7};
    for (double e = std::floor(std::log10(a.low)); e <= std::log10(a.high); ++e)
      for (const double s : steps)
        if (const double t = s * std::pow(10, e); t >= a.low * 0.999 && t <= a.high * 1.001) out.push_back(t);
    return out;
  }
  const double raw = (a.high - a.low) / 6, power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double s : {5.0, 2.0, 1.0})
    if (s * power >= raw) step = s * power;
  for (double t = std::ceil(a.low / step) * step; t <= a.high + 1e-9 * step; t += step)
    out.push_back(std::abs(t) < 1e-9 * step ? 0 : t);
  return out;
}

double part(const Axis& a, double v) {
  return a.log ? std::log(v / a.low) / std::log(a.high / a.low) : (v - a.low) / (a.high - a.low);
}

}  // namespace

std::string html_escape(const std::string& text) {
  std::string out;
  for (const char c : text) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  return out;
}

std::string short_number(double x) {
  if (!std::isfinite(x)) return std::isnan(x) ? "-" : x > 0 ? "inf" : "-inf";
  char text[32];
  const double size = std::abs(x);
  if (size != 0 && (size < 1e-4 || size >= 1e6))
    std::snprintf(text, sizeof text, "%.2e", x);
  else if (size >= 100)
    std::snprintf(text, sizeof text, "%.0f", x);
  else
    std::snprintf(text, sizeof text, "%.*f", size == 0 ? 0 : 2 - int(std::floor(std::log10(size))), x);
  return text;
}

Axis axis_for(std::string label, const std::vector<double>& values, bool log) {
  Axis a{std::move(label), 0, 1, log};
  bool any = false;
  for (const double v : values) {
    if (!std::isfinite(v)) continue;
    if (log && v <= 0) continue;
    a.low = any ? std::min(a.low, v) : v;
    a.high = any ? std::max(a.high, v) : v;
    any = true;
  }
  if (!any) return {a.label, 0, 1, false};
  if (log) {
    a.low /= 1.15;
    a.high *= 1.15;
    return a;
  }
  const double room = a.high > a.low ? 0.04 * (a.high - a.low) : 0.5 + 0.1 * std::abs(a.high);
  a.low = a.low >= 0 && a.low < 8 * room ? 0 : a.low - room;
  a.high += room;
  return a;
}

Plot::Plot(Axis x, Axis y, double width, double height)
    : x_(std::move(x)), y_(std::move(y)), width_(width), height_(height) {}

double Plot::px(double x) const { return kLeft + part(x_, x) * (width_ - kLeft - kRight); }
double Plot::py(double y) const { return height_ - kBottom - part(y_, y) * (height_ - kTop - kBottom); }

void Plot::legend(const std::string& colour, const std::string& name) {
  if (name.empty()) return;
  const double y = below_ ? height_ - kBottom - 10 - 17 * names_ : kTop + 14 + 17 * names_;
  ++names_;
  legend_ += join("<rect x=\"", number(width_ - kRight - 14), "\" y=\"", number(y - 9),
                  "\" width=\"10\" height=\"10\" rx=\"2\" fill=\"", colour, "\"/>");
  legend_ += text_at(width_ - kRight - 20, y, name, "text-anchor=\"end\" class=\"key\"");
}

void Plot::line(const std::vector<Point>& points, const std::string& colour, const std::string& name,
                bool dashed) {
  body_ += join("<polyline fill=\"none\" stroke=\"", colour, "\" stroke-width=\"2\"",
                dashed ? " stroke-dasharray=\"5 4\"" : "", " points=\"");
  for (const Point& p : points)
    if ((!x_.log || p.x > 0) && (!y_.log || p.y > 0))
      body_ += join(number(px(p.x)), ",", number(py(p.y)), " ");
  body_ += "\"/>\n";
  legend(colour, name);
}

void Plot::stairs(const std::vector<Point>& points, const std::string& colour, const std::string& name) {
  std::vector<Point> corners;
  for (const Point& p : points) {
    if (!corners.empty()) corners.push_back({p.x, corners.back().y});
    corners.push_back(p);
  }
  line(corners, colour, name);
}

void Plot::dots(const std::vector<Point>& points, const std::string& colour, const std::string& name,
                double radius) {
  for (const Point& p : points) {
    if ((x_.log && p.x <= 0) || (y_.log && p.y <= 0)) continue;
    const std::string x = number(px(p.x)), y = number(py(p.y));
    if (p.low <= p.high && (!y_.log || p.low > 0))
      body_ += join("<line x1=\"", x, "\" x2=\"", x, "\" y1=\"", number(py(p.low)), "\" y2=\"",
                    number(py(p.high)), "\" stroke=\"", colour, "\" stroke-width=\"1.5\"/>");
    body_ += join("<circle cx=\"", x, "\" cy=\"", y, "\" r=\"", number(radius), "\" fill=\"", colour,
                  "\" fill-opacity=\"0.85\"><title>", html_escape(p.title), "</title></circle>\n");
  }
  legend(colour, name);
}

void Plot::label(double x, double y, const std::string& text) {
  if ((x_.log && x <= 0) || (y_.log && y <= 0)) return;
  const bool right = px(x) > 0.72 * width_;
  labels_ += text_at(px(x) + (right ? -8 : 8), py(y) - 6, text,
                     right ? "text-anchor=\"end\" class=\"key\"" : "class=\"key\"");
}

std::string Plot::svg() const {
  const double bottom = height_ - kBottom, right = width_ - kRight;
  std::string out = join("<svg viewBox=\"0 0 ", number(width_), " ", number(height_), "\" width=\"",
                         number(width_), "\" role=\"img\">\n<defs><clipPath id=\"area\"><rect x=\"",
                         number(kLeft), "\" y=\"", number(kTop), "\" width=\"", number(right - kLeft),
                         "\" height=\"", number(bottom - kTop), "\"/></clipPath></defs>\n");
  for (const double t : ticks(x_)) {
    out += join("<line x1=\"", number(px(t)), "\" x2=\"", number(px(t)), "\" y1=\"", number(kTop), "\" y2=\"",
                number(bottom), "\" class=\"grid\"/>");
    out += text_at(px(t), bottom + 17, tick_text(t), "text-anchor=\"middle\" class=\"tick\"");
  }
  for (const double t : ticks(y_)) {
    out += join("<line x1=\"", number(kLeft), "\" x2=\"", number(right), "\" y1=\"", number(py(t)),
                "\" y2=\"", number(py(t)), "\" class=\"grid\"/>");
    out += text_at(kLeft - 7, py(t) + 4, tick_text(t), "text-anchor=\"end\" class=\"tick\"");
  }
  out += text_at((kLeft + right) / 2, height_ - 10, x_.label, "text-anchor=\"middle\" class=\"axis\"");
  const std::string turn = join("text-anchor=\"middle\" class=\"axis\" transform=\"rotate(-90 16 ",
                                number((kTop + bottom) / 2), ")\"");
  out += text_at(16, (kTop + bottom) / 2, y_.label, turn.c_str());
  return out + "<g clip-path=\"url(#area)\">\n" + body_ + "</g>\n" + labels_ + legend_ + "</svg>\n";
}

std::string svg_heat_map(const HeatMap& map) {
  constexpr double kCell = 46, kRowHeight = 24, kNames = 130, kHeader = 26;
  const double width = kNames + kCell * double(map.columns.size()) + 8;
  const double height = kHeader + kRowHeight * double(map.rows.size()) + 6;
  std::string out = join("<svg viewBox=\"0 0 ", number(width), " ", number(height), "\" width=\"",
                         number(width), "\" role=\"img\">\n");
  for (size_t c = 0; c < map.columns.size(); ++c)
    out += text_at(kNames + kCell * (double(c) + 0.5), kHeader - 9, map.columns[c],
                   "text-anchor=\"middle\" class=\"tick\"");
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = kHeader + kRowHeight * double(r);
    out += text_at(kNames - 8, y + 16, map.rows[r], "text-anchor=\"end\" class=\"tick\"");
    for (size_t c = 0; c < map.columns.size(); ++c) {
      const double v = map.values[r][c];
      if (std::isnan(v)) continue;
      const double w = std::clamp(v, 0.0, 1.0);
      // From near white over amber to dark red: darkness grows with the value, so it reads without colour.
      const int red = int(255 - 115 * std::max(0.0, w - 0.4) / 0.6), green = int(250 - 215 * w),
                blue = int(238 - 200 * std::min(1.0, 1.4 * w));
      out += join("<rect x=\"", number(kNames + kCell * double(c) + 1), "\" y=\"", number(y + 1),
                  "\" width=\"", number(kCell - 2), "\" height=\"", number(kRowHeight - 2),
                  "\" rx=\"3\" fill=\"rgb(", std::to_string(red), ",", std::to_string(green), ",",
                  std::to_string(blue), ")\"><title>", html_escape(map.titles[r][c]), "</title></rect>");
      out += text_at(kNames + kCell * (double(c) + 0.5), y + 16, map.marks[r][c],
                     w > 0.6 ? "text-anchor=\"middle\" class=\"mark\" fill=\"#fff\" pointer-events=\"none\""
                             : "text-anchor=\"middle\" class=\"mark\" fill=\"#222\" pointer-events=\"none\"");
    }
  }
  return out + "</svg>\n";
}

}  // namespace rivulet
