// Compiled without floating-point contraction: the polynomials must round the same everywhere.
#include "tensor/random.h"

#include <cmath>

#include "tensor/parallel.h"

namespace rivulet {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
    c = {uint32_t(b >> 32) ^ c[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k[1], uint32_t(a)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

namespace {

// The third counter word tells the kinds of draw apart, so that they never share bits.
enum Kind : uint32_t { kBits = 0, kNormal = 1, kFork = 2 };

std::array<uint32_t, 4> block(uint64_t seed, uint64_t index, Kind kind) {
  return philox4x32({uint32_t(index), uint32_t(index >> 32), kind, 0},
                    {uint32_t(seed), uint32_t(seed >> 32)});
}

uint32_t bits_at(uint64_t seed, uint64_t i) { return block(seed, i / 4, kBits)[i % 4]; }

// ln(x) for x in (0, 1], by 2 atanh((m-1)/(m+1)) on the mantissa m in [sqrt(1/2), sqrt(2)).
float ln_unit(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  int e = int(u >> 23) - 127;
  float m = std::bit_cast<float>((u & 0x7fffffu) | 0x3f800000u);
  if (m > 1.41421356f) {
    m *= 0.5f;
    ++e;
  }
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  float p = 1.0f / 9.0f;
  p = std::fma(p, z, 1.0f / 7.0f);
  p = std::fma(p, z, 1.0f / 5.0f);
  p = std::fma(p, z, 1.0f / 3.0f);
  p = std::fma(p * z, s, s);
  return std::fma(float(e), 0.693147181f, 2.0f * p);
}

// cos and sin of 2 pi b / 2^32: the top two bits choose the quadrant, Taylor series to pi/4 do the rest.
void cos_sin_turn(uint32_t b, float& c, float& s) {
  const uint32_t shifted = b + 0x20000000u;  // centre the quadrants on multiples of pi/2
  const uint32_t quadrant = shifted >> 30;
  const float x =
      float(int32_t(shifted & 0x3fffffffu) - 0x20000000) * 1.46291807926715968e-9f;  // 2 pi / 2^32
  const float z = x * x;
  float sp = std::fma(z, 2.75573192e-6f, -1.98412698e-4f);
  sp = std::fma(sp, z, 8.33333333e-3f);
  sp = std::fma(sp, z, -1.66666667e-1f);
  const float sin_x = std::fma(sp * z, x, x);
  float cp = std::fma(z, 2.48015873e-5f, -1.38888889e-3f);
  cp = std::fma(cp, z, 4.16666667e-2f);
  cp = std::fma(cp, z, -0.5f);
  const float cos_x = std::fma(cp, z, 1.0f);
  const float cs[4] = {cos_x, -sin_x, -cos_x, sin_x}, sn[4] = {sin_x, cos_x, -sin_x, -cos_x};
  c = cs[quadrant];
  s = sn[quadrant];
}

// Box-Muller: elements 2j and 2j+1 are the two results of block j.
float normal_at(uint64_t seed, uint64_t i) {
  const auto r = block(seed, i / 2, kNormal);
  const float radius = std::sqrt(-2.0f * ln_unit((float(r[0]) + 1.0f) * 0x1p-32f));
  float c, s;
  cos_sin_turn(r[1], c, s);
  return radius * (i % 2 ? s : c);
}

template <class F>
Tensor draw(const Shape& shape, Rng& rng, DType dtype, Device device, F&& value_at) {
  Tensor t(shape, DType::f32);
  float* p = t.data<float>();
  const uint64_t first = rng.offset;
  parallel_for(t.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p[i] = value_at(first + uint64_t(i));
  });
  rng.offset += uint64_t(t.numel());
  return t.to(dtype).to(device);
}

}  // namespace

uint32_t Rng::bits() { return bits_at(seed, offset++); }
double Rng::uniform() { return double(bits()) * 0x1p-32; }
int64_t Rng::below(int64_t n) {
  check(n > 0, "rng: below(", n, ")");
  return int64_t(uniform() * double(n));
}
double Rng::normal() { return double(normal_at(seed, offset++)); }

Rng Rng::fork(uint64_t stream) const {
  const auto r = block(seed, stream, kFork);
  return {uint64_t(r[0]) | uint64_t(r[1]) << 32, 0};
}

Tensor randn(const Shape& shape, Rng& rng, DType dtype, Device device) {
  const uint64_t seed = rng.seed;
  return draw(shape, rng, dtype, device, [seed](uint64_t i) { return normal_at(seed, i); });
}

Tensor rand_uniform(const Shape& shape, double a, double b, Rng& rng, DType dtype, Device device) {
  const uint64_t seed = rng.seed;
  const float lo = float(a), range = float(b - a);
  return draw(shape, rng, dtype, device,
              [=](uint64_t i) { return std::fma(float(bits_at(seed, i) >> 8) * 0x1p-24f, range, lo); });
}

}  // namespace rivulet
