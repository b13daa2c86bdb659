// The arithmetic of ops/quantize.h for one row or group: shared by the CPU and the GPU, bit for bit.
#pragma once

#include <cmath>

#include "ops/formats.h"
#include "ops/quantize.h"

namespace rivulet {

inline constexpr float kLeastScale = 0x1p-100f;

// The larger of m and |x|, skipping what is not finite.
RIVULET_BOTH inline float finite_max(float m, float x) {
  const float a = bits_as<float>(bits_as<uint32_t>(x) & 0x7fffffffu);
  return a > m && a <= 3.402823466e38f ? a : m;
}

RIVULET_BOTH inline float scale_of(float amax, float largest) {
  const float s = amax / largest;
  return s > kLeastScale ? s : kLeastScale;
}

// What the largest value of an fp4 matrix becomes: 448 * 6, or 256 * 6 to leave room for groups whose scale
// is above amax / 6.
RIVULET_BOTH inline float fp4_range(Format f) { return f == Format::nvfp4 ? 2688.f : 1536.f; }

RIVULET_BOTH inline uint8_t fp4_scale(float amax, float divisor, float global) {
  const float s = amax / divisor / global;
  return e4m3_of(s > 0x1p-9f ? s : 0x1p-9f);
}

// The error of a group of 16 under a scale, added up in pairs.
RIVULET_BOTH inline float squared_error(const float (&x)[16], float global, uint8_t scale) {
  const float s = e4m3_value(scale) * global, r = 1 / s;
  float d[16];
  for (int i = 0; i < 16; ++i) d[i] = fmaf(e2m1_rounded(x[i] * r), s, -x[i]);
  // Written as it is to be computed: a compiler may make one operation of a product and a sum.
  for (int i = 0; i < 8; ++i) d[i] = fmaf(d[i], d[i], d[i + 8] * d[i + 8]);
  for (int i = 0; i < 4; ++i) d[i] += d[i + 4];
  return (d[0] + d[2]) + (d[1] + d[3]);
}

// The scale of a group of values with this amax, filled up with zeros.
RIVULET_BOTH inline uint8_t fp4_group_scale(Format f, const float (&x)[16], float amax, float global) {
  uint8_t best = fp4_scale(amax, 6, global);
  if (f == Format::nvfp4) return best;
  float least = squared_error(x, global, best);
  // Codes grow with their values. Below amax / 9 too much is cut off, above amax / 3.4 steps are too wide.
  const uint8_t first = fp4_scale(amax, f == Format::nvfp4_46 ? 4 : 9, global);
  const uint8_t last = fp4_scale(amax, f == Format::nvfp4_46 ? 4 : 3.4f, global);
  for (int code = first; code <= last; ++code) {
    const float error = squared_error(x, global, uint8_t(code));
    if (error < least) {
      least = error;
      best = uint8_t(code);
    }
  }
  return best;
}

// f32 that a group scale's code stands for, and that a value's code does.
RIVULET_BOTH inline float group_scale_value(Format f, uint8_t code) {
  return is_fp4(f) ? e4m3_value(code) : e8m0_value(code);
}

}  // namespace rivulet
