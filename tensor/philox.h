// The arithmetic of the random numbers, shared by both devices. Compiled without floating-point contraction
// everywhere (see CMakeLists.txt): with plain IEEE operations and explicit fused ones, all round alike.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define RIVULET_BOTH __host__ __device__
#else
#define RIVULET_BOTH
#endif

namespace rivulet::philox {

struct Words {
  uint32_t v[4];
};

RIVULET_BOTH inline Words rounds(Words c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c.v[0], b = uint64_t(0xCD9E8D57u) * c.v[2];
    c = {{uint32_t(b >> 32) ^ c.v[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ c.v[3] ^ key1, uint32_t(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// The third counter word tells the kinds of draw apart, so that they never share bits.
enum Kind : uint32_t { kBits = 0, kNormal = 1, kFork = 2 };

RIVULET_BOTH inline Words block(uint64_t seed, uint64_t index, Kind kind) {
  return rounds({{uint32_t(index), uint32_t(index >> 32), kind, 0}}, uint32_t(seed), uint32_t(seed >> 32));
}

RIVULET_BOTH inline uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof(u));
  return u;
}
RIVULET_BOTH inline float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof(x));
  return x;
}

// ln(x) for x in (0, 1], by 2 atanh((m-1)/(m+1)) on the mantissa m in [sqrt(1/2), sqrt(2)).
RIVULET_BOTH inline float ln_unit(float x) {
  const uint32_t u = bits_of(x);
  int e = int(u >> 23) - 127;
  float m = float_of((u & 0x7fffffu) | 0x3f800000u);
  if (m > 1.41421356f) {
    m *= 0.5f;
    ++e;
  }
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  float p = 1.0f / 9.0f;
  p = fmaf(p, z, 1.0f / 7.0f);
  p = fmaf(p, z, 1.0f / 5.0f);
  p = fmaf(p, z, 1.0f / 3.0f);
  p = fmaf(p * z, s, s);
  return fmaf(float(e), 0.693147181f, 2.0f * p);
}

// cos and sin of 2 pi b / 2^32: the top two bits choose the quadrant, Taylor series to pi/4 do the rest.
RIVULET_BOTH inline void cos_sin_turn(uint32_t b, float& c, float& s) {
  const uint32_t shifted = b + 0x20000000u;  // centre the quadrants on multiples of pi/2
  const uint32_t quadrant = shifted >> 30;
  const float x =
      float(int32_t(shifted & 0x3fffffffu) - 0x20000000) * 1.46291807926715968e-9f;  // 2 pi / 2^32
  const float z = x * x;
  float sp = fmaf(z, 2.75573192e-6f, -1.98412698e-4f);
  sp = fmaf(sp, z, 8.33333333e-3f);
  sp = fmaf(sp, z, -1.66666667e-1f);
  const float sin_x = fmaf(sp * z, x, x);
  float cp = fmaf(z, 2.48015873e-5f, -1.38888889e-3f);
  cp = fmaf(cp, z, 4.16666667e-2f);
  cp = fmaf(cp, z, -0.5f);
  const float cos_x = fmaf(cp, z, 1.0f);
  const bool odd = quadrant & 1, c_minus = quadrant == 1 || quadrant == 2, s_minus = quadrant >= 2;
  const float c_size = odd ? sin_x : cos_x, s_size = odd ? cos_x : sin_x;
  c = c_minus ? -c_size : c_size;
  s = s_minus ? -s_size : s_size;
}

// Box-Muller: elements 2j and 2j + 1 of a stream are the two results of block j.
struct NormalPair {
  float even, odd;
};
RIVULET_BOTH inline NormalPair normal_pair(uint64_t seed, uint64_t j) {
  const Words r = block(seed, j, kNormal);
  const float radius = sqrtf(-2.0f * ln_unit((float(r.v[0]) + 1.0f) * 0x1p-32f));
  float c, s;
  cos_sin_turn(r.v[1], c, s);
  return {radius * c, radius * s};
}

RIVULET_BOTH inline float uniform_from(uint32_t bits, float low, float range) {
  return fmaf(float(bits >> 8) * 0x1p-24f, range, low);
}

}  // namespace rivulet::philox

#undef RIVULET_BOTH
