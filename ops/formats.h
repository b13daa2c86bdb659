// The small number formats, one value at a time: encoding rounds to nearest, ties to even, and saturates;
// every function gives the same bits on the CPU and on a GPU (and as the host functions of cuda_fp8.h and
// cuda_fp4.h with __NV_SATFINITE).
//
//   E2M1    sign, 2 exponent bits (bias 1), 1 mantissa bit: 0 0.5 1 1.5 2 3 4 6. No Inf, no NaN: NaN gives
//   +6. E4M3    bias 7, largest 448, smallest 2^-9, no Inf; NaN is 0x7f. E5M2    bias 15, largest 57344,
//   smallest 2^-16; NaN is 0x7f. UE8M0   a power of two, 2^(code - 127); 255 is NaN. Encoding rounds up, so
//   what is scaled by it fits.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define RIVULET_BOTH __host__ __device__
#else
#define RIVULET_BOTH
#endif

namespace rivulet {

template <class To, class From>
RIVULET_BOTH inline To bits_as(From x) {
  return __builtin_bit_cast(To, x);
}

inline constexpr float kE2m1Max = 6, kE4m3Max = 448, kE5m2Max = 57344;

// A float with `mantissa` bits after the point and smallest normal exponent `low`, as its 7 bits without the
// sign. Adding the difference of the exponents' biases would lose subnormals: those are rounded by adding
// a number whose last bit is their unit.
template <int mantissa, int low>
RIVULET_BOTH inline uint32_t small_float_magnitude(float a, float largest) {
  if (a >= largest) a = largest;
  constexpr int kBias = 1 - low;
  const float normal = bits_as<float>(uint32_t(low + 127) << 23);
  if (a < normal) {
    const float unit_holder = bits_as<float>(uint32_t(low - mantissa + 23 + 127) << 23);
    return bits_as<uint32_t>(a + unit_holder) - bits_as<uint32_t>(unit_holder);
  }
  const uint32_t u = bits_as<uint32_t>(a);
  constexpr int kDrop = 23 - mantissa;
  const uint32_t rounded = (u + (1u << (kDrop - 1)) - 1 + ((u >> kDrop) & 1u)) >> kDrop;
  return rounded - (uint32_t(127 - kBias) << mantissa);
}

RIVULET_BOTH inline uint8_t e4m3_of(float x) {
  const uint32_t u = bits_as<uint32_t>(x), sign = (u >> 24) & 0x80u;
  const float a = bits_as<float>(u & 0x7fffffffu);
  if (!(a == a)) return 0x7f;
  return uint8_t(sign | small_float_magnitude<3, -6>(a, kE4m3Max));
}

// e4m3_value(e4m3_of(x)), without branches.
RIVULET_BOTH inline float e4m3_rounded(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  float a = bits_as<float>(u & 0x7fffffffu);
  a = a > kE4m3Max ? kE4m3Max : a;
  const uint32_t exponent = bits_as<uint32_t>(a) & 0x7f800000u, least = 121u << 23;
  const float holder = bits_as<float>((exponent > least ? exponent : least) + (20u << 23));
  const float y = (a + holder) - holder;
  return bits_as<float>(bits_as<uint32_t>(y) | (u & 0x80000000u));
}

RIVULET_BOTH inline float e4m3_value(uint8_t code) {
  const uint32_t sign = uint32_t(code & 0x80u) << 24, e = (code >> 3) & 15u, m = code & 7u;
  if ((code & 0x7fu) == 0x7fu) return bits_as<float>(0x7fc00000u);
  const float magnitude = e == 0 ? float(m) * 0x1p-9f : bits_as<float>(((e + 120u) << 23) | (m << 20));
  return bits_as<float>(bits_as<uint32_t>(magnitude) | sign);
}

RIVULET_BOTH inline uint8_t e5m2_of(float x) {
  const uint32_t u = bits_as<uint32_t>(x), sign = (u >> 24) & 0x80u;
  const float a = bits_as<float>(u & 0x7fffffffu);
  if (!(a == a)) return 0x7f;
  return uint8_t(sign | small_float_magnitude<2, -14>(a, kE5m2Max));
}

RIVULET_BOTH inline float e5m2_value(uint8_t code) {
  const uint32_t sign = uint32_t(code & 0x80u) << 24, e = (code >> 2) & 31u, m = code & 3u;
  if (e == 31u) return bits_as<float>(sign | (m ? 0x7fc00000u : 0x7f800000u));
  const float magnitude = e == 0 ? float(m) * 0x1p-16f : bits_as<float>(((e + 112u) << 23) | (m << 21));
  return bits_as<float>(bits_as<uint32_t>(magnitude) | sign);
}

// Ties go to the even code: 0.25, 1.25, 2.5 and 5 down, 0.75, 1.75 and 3.5 up.
RIVULET_BOTH inline uint8_t e2m1_of(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  const float a = bits_as<float>(u & 0x7fffffffu);
  if (!(a == a)) return 7;
  const uint32_t code = uint32_t(a > 0.25f) + uint32_t(a >= 0.75f) + uint32_t(a > 1.25f) +
                        uint32_t(a >= 1.75f) + uint32_t(a > 2.5f) + uint32_t(a >= 3.5f) + uint32_t(a > 5.f);
  return uint8_t(((u >> 28) & 8u) | code);
}

// e2m1_value(e2m1_of(x)), without branches: adding a number whose last bit is the format's step at x rounds.
RIVULET_BOTH inline float e2m1_rounded(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  float a = bits_as<float>(u & 0x7fffffffu);
  a = a < kE2m1Max ? a : kE2m1Max;
  const float holder = a < 2.f ? 0x1p22f : a < 4.f ? 0x1p23f : 0x1p24f;
  const uint32_t sign = u > 0xff800000u ? 0u : u & 0x80000000u;  // NaN gives +6
  return bits_as<float>(bits_as<uint32_t>((a + holder) - holder) | sign);
}

RIVULET_BOTH inline float e2m1_value(uint8_t code) {
  const uint32_t sign = uint32_t(code & 8u) << 28, e = (code >> 1) & 3u, m = code & 1u;
  const float magnitude = e == 0 ? 0.5f * float(m) : bits_as<float>(((e + 126u) << 23) | (m << 22));
  return bits_as<float>(bits_as<uint32_t>(magnitude) | sign);
}

// x >= 0. The least power of two that is not below x.
RIVULET_BOTH inline uint8_t e8m0_of(float x) {
  const uint32_t u = bits_as<uint32_t>(x) & 0x7fffffffu;
  if (u > 0x7f800000u) return 255;
  const uint32_t e = u >> 23, m = u & 0x7fffffu;
  if (e == 0) return m > 0x400000u ? 1 : 0;  // 2^-127 is the code 0
  const uint32_t up = e + (m != 0);
  return uint8_t(up < 254u ? up : 254u);
}

RIVULET_BOTH inline float e8m0_value(uint8_t code) {
  if (code == 255) return bits_as<float>(0x7fc00000u);
  return bits_as<float>(code == 0 ? 0x400000u : uint32_t(code) << 23);
}

}  // namespace rivulet
