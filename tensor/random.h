// Counter-based random numbers (Philox4x32-10, Salmon et al. 2011): element i of a draw depends on
// (seed, offset + i) alone, so every device and thread count gives the same numbers.
#pragma once

#include "tensor/tensor.h"

namespace rivulet {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A plain value: copy it to fork a stream, store (seed, offset) to resume it.
struct Rng {
  uint64_t seed = 0;
  uint64_t offset = 0;  // elements drawn so far

  uint32_t bits();
  double uniform();  // [0, 1)
  double uniform(double a, double b) { return a + (b - a) * uniform(); }
  int64_t below(int64_t n);  // 0 .. n-1
  double normal();
  // An independent stream for a named purpose; does not advance this one.
  Rng fork(uint64_t stream) const;
};

// N(0, 1), and uniform on [a, b), computed in f32 by fixed polynomials (no libm), then converted.
Tensor randn(const Shape& shape, Rng& rng, DType dtype = DType::f32, Device device = Device::cpu);
Tensor rand_uniform(const Shape& shape, double a, double b, Rng& rng, DType dtype = DType::f32,
                    Device device = Device::cpu);

}  // namespace rivulet
