// Arithmetic on one pixel, shared by the looks and the renderer.
#pragma once

#include <algorithm>
#include <cmath>

namespace rivulet {

struct Rgb {
  float r = 0, g = 0, b = 0;
  friend Rgb operator+(Rgb a, Rgb b) { return {a.r + b.r, a.g + b.g, a.b + b.b}; }
  friend Rgb operator-(Rgb a, Rgb b) { return {a.r - b.r, a.g - b.g, a.b - b.b}; }
  friend Rgb operator*(Rgb a, Rgb b) { return {a.r * b.r, a.g * b.g, a.b * b.b}; }
  friend Rgb operator*(Rgb a, float s) { return {a.r * s, a.g * s, a.b * s}; }
  friend bool operator==(const Rgb&, const Rgb&) = default;
};

inline float clamp01(float x) { return std::clamp(x, 0.0f, 1.0f); }
inline Rgb clamp01(Rgb p) { return {clamp01(p.r), clamp01(p.g), clamp01(p.b)}; }
// Rec. 601 luma of display values.
inline float luma(Rgb p) { return 0.299f * p.r + 0.587f * p.g + 0.114f * p.b; }
inline Rgb mix(Rgb a, Rgb b, float t) { return a + (b - a) * t; }
inline float mix(float a, float b, float t) { return a + (b - a) * t; }
// 0 below a, 1 above b, a cubic between.
inline float smoothstep(float a, float b, float x) {
  const float t = clamp01((x - a) / (b - a));
  return t * t * (3 - 2 * t);
}

inline Rgb load_pixel(const float* p) { return {p[0], p[1], p[2]}; }
inline void store_pixel(float* p, Rgb v) {
  p[0] = v.r;
  p[1] = v.g;
  p[2] = v.b;
}

// Hue in degrees [0, 360), saturation and value in [0, 1], chroma = saturation * value.
struct Hsv {
  float hue = 0, saturation = 0, value = 0, chroma = 0;
};
inline Hsv to_hsv(Rgb p) {
  const float high = std::max({p.r, p.g, p.b}), low = std::min({p.r, p.g, p.b}), c = high - low;
  if (c <= 0) return {0, 0, high, 0};
  float h = high == p.r ? (p.g - p.b) / c : high == p.g ? (p.b - p.r) / c + 2 : (p.r - p.g) / c + 4;
  if (h < 0) h += 6;
  return {60 * h, c / high, high, c};
}
inline Rgb from_hsv(float hue, float saturation, float value) {
  const auto channel = [&](float n) {
    float k = std::fmod(n + hue / 60, 6.0f);
    if (k < 0) k += 6;
    return value - value * saturation * clamp01(std::min(k, 4 - k));
  };
  return {channel(5), channel(3), channel(1)};
}

}  // namespace rivulet
