// Compiled without floating-point contraction: the polynomials must round the same everywhere.
#include "tensor/random.h"

#include "tensor/kernels.h"
#include "tensor/parallel.h"
#include "tensor/philox.h"

namespace rivulet {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  const philox::Words w = philox::rounds({{c[0], c[1], c[2], c[3]}}, k[0], k[1]);
  return {w.v[0], w.v[1], w.v[2], w.v[3]};
}

namespace {

uint32_t bits_at(uint64_t seed, uint64_t i) { return philox::block(seed, i / 4, philox::kBits).v[i % 4]; }

float normal_at(uint64_t seed, uint64_t i) {
  const philox::NormalPair pair = philox::normal_pair(seed, i / 2);
  return i % 2 ? pair.odd : pair.even;
}

template <class F>
void draw(const Tensor& to, F&& value_at) {
  float* p = to.data<float>();
  parallel_for(to.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p[i] = value_at(uint64_t(i));
  });
}

}  // namespace

namespace cpu {

void draw_normal(const Tensor& to, uint64_t seed, uint64_t offset) {
  draw(to, [=](uint64_t i) { return normal_at(seed, offset + i); });
}

void draw_uniform(const Tensor& to, float low, float range, uint64_t seed, uint64_t offset) {
  draw(to, [=](uint64_t i) { return philox::uniform_from(bits_at(seed, offset + i), low, range); });
}

}  // namespace cpu

uint32_t Rng::bits() { return bits_at(seed, offset++); }
double Rng::uniform() { return double(bits()) * 0x1p-32; }
int64_t Rng::below(int64_t n) {
  check(n > 0, "rng: below(", n, ")");
  return int64_t(uniform() * double(n));
}
double Rng::normal() { return double(normal_at(seed, offset++)); }

Rng Rng::fork(uint64_t stream) const {
  const philox::Words r = philox::block(seed, stream, philox::kFork);
  return {uint64_t(r.v[0]) | uint64_t(r.v[1]) << 32, 0};
}

Tensor randn(const Shape& shape, Rng& rng, DType dtype, Device device) {
  const Tensor t(shape, DType::f32, device);
  ON_DEVICE(t, draw_normal(t, rng.seed, rng.offset));
  rng.offset += uint64_t(t.numel());
  return t.to(dtype);
}

Tensor rand_uniform(const Shape& shape, double a, double b, Rng& rng, DType dtype, Device device) {
  const Tensor t(shape, DType::f32, device);
  ON_DEVICE(t, draw_uniform(t, float(a), float(b - a), rng.seed, rng.offset));
  rng.offset += uint64_t(t.numel());
  return t.to(dtype);
}

}  // namespace rivulet
