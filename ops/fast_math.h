// exp, log, tanh and friends for CPU kernels. The f32 versions are polynomials without branches or calls
// (coefficients: S. Moshier, Cephes), so that a plain loop over them becomes vector code; they are within
// 2 ulp of the exact value over the whole range, denormal results included (but for fast_exp2). f64 uses the
// C library.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace rivulet::cpu {

inline float fast_exp(float x) {
  x = x > 89.f ? 89.f : x;  // overflows to infinity below; NaN passes both comparisons
  x = x < -104.f ? -104.f : x;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  // 2^n in two factors, since n alone may leave the range of exponents.
  const int32_t e = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  const int32_t half = e >> 1;
  return p * std::bit_cast<float>((half + 127) << 23) * std::bit_cast<float>((e - half + 127) << 23);
}
inline double fast_exp(double x) { return std::exp(x); }

inline constexpr double kLog2E = 1.4426950408889634;

// 2^x, cheaper than fast_exp: relative error below 3e-7 down to 2^-126, exactly 0 from -127 down (so also at
// -inf), held at 2^127; NaN stays NaN.
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

inline float fast_log(float x) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const bool tiny = x < std::numeric_limits<float>::min();
  const float scaled = tiny ? x * 8388608.f : x;
  // scaled = m * 2^e with m in [sqrt(1/2), sqrt(2)).
  const int32_t bits = std::bit_cast<int32_t>(scaled) - 0x3f3504f3;
  const float e = float((bits >> 23) - (tiny ? 23 : 0));
  const float m = std::bit_cast<float>((bits & 0x007fffff) + 0x3f3504f3) - 1.f;
  const float z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  float y = p * m * z + e * -2.12194440e-4f - 0.5f * z;
  y = m + y + e * 0.693359375f;
  y = x == kInf ? kInf : y;
  y = x == 0.f ? -kInf : y;
  return x >= 0.f ? y : std::numeric_limits<float>::quiet_NaN();
}
inline double fast_log(double x) { return std::log(x); }

// log(1 + u) for u >= 0: the rounding of 1 + u is taken back by the quotient.
inline float fast_log1p(float u) {
  const float w = 1.f + u, d = w - 1.f;
  const float y = fast_log(w) * (u / (d == 0.f ? 1.f : d));
  return d == 0.f ? u : y;
}
inline double fast_log1p(double u) { return std::log1p(u); }

inline float fast_tanh(float x) {
  const float a = std::fabs(x), z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x;
  const float far = std::copysign(1.f - 2.f / (fast_exp(2.f * a) + 1.f), x);
  return a < 0.625f ? near : far;
}
inline double fast_tanh(double x) { return std::tanh(x); }

template <class T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + fast_exp(-x));
}

}  // namespace rivulet::cpu
