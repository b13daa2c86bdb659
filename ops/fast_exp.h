// 2^x without branches or calls in f32, so that a loop over it becomes vector code.
// f32: relative error below 2e-7; exactly 0 below -126 (so also at -inf), held at 2^127 above; NaN stays NaN.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace rivulet::cpu {

inline constexpr double kLog2E = 1.4426950408889634;

inline float fast_exp2(float x) {
  float y = x < -126.f ? -126.f : x;
  y = y > 127.f ? 127.f : y;
  // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
  const float shifted = y + 12582912.f;
  const float f = y - (shifted - 12582912.f);
  float p = 1.535336188319500e-4f;
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;
  const float r = std::bit_cast<float>(std::bit_cast<uint32_t>(p) + exponent);
  return x < -126.f ? 0.f : r;
}
inline double fast_exp2(double x) { return std::exp2(x); }

// 1 / (1 + e^-x)
template <class T>
inline T fast_sigmoid(T x) {
  return T(1) / (T(1) + fast_exp2(T(-kLog2E) * x));
}

}  // namespace rivulet::cpu
