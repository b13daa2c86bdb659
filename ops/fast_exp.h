// 2^x without branches or calls in f32, so that a loop over it becomes vector code.
// f32: relative error below 3e-7 down to 2^-126, exactly 0 from -127 down (so also at -inf), held at 2^127; NaN stays NaN.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace rivulet::cpu {

inline constexpr double kLog2E = 1.4426950408889634;

inline float fast_exp2(float x) {
  float y = x < -127.f ? -127.f : x;
  y = y > 127.f ? 127.f : y;
  // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
  const float shifted = y + 12582912.f;
  const float f = y - (shifted - 12582912.f);
  float p = 1.3264729e-3f;
  p = p * f + 9.6715142e-3f;
  p = p * f + 5.5507338e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  p = p * f + 1.f;
  // At -127, f is 0 and p is 1, and the sum of the bits is that of zero.
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) + exponent);
}
inline double fast_exp2(double x) { return std::exp2(x); }

// 1 / (1 + e^-x)
template <class T>
inline T fast_sigmoid(T x) {
  return T(1) / (T(1) + fast_exp2(T(-kLog2E) * x));
}

}  // namespace rivulet::cpu
