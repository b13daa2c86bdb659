// Compiled with -fmad=false: the polynomials must round as they do on the CPU.
#include "tensor/cuda.cuh"
#include "tensor/philox.h"

namespace rivulet::cuda {
namespace {

// A thread makes the whole pair j: elements 2j - offset and 2j + 1 - offset, as far as they are asked for.
__global__ void normals(float* to, int64_t n, uint64_t seed, uint64_t offset) {
  const uint64_t j = offset / 2 + uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const philox::NormalPair pair = philox::normal_pair(seed, j);
  const int64_t i = int64_t(2 * j - offset);
  if (i >= 0 && i < n) to[i] = pair.even;
  if (i + 1 < n) to[i + 1] = pair.odd;
}

// The same for the four words of block j.
__global__ void uniforms(float* to, int64_t n, float low, float range, uint64_t seed, uint64_t offset) {
  const uint64_t j = offset / 4 + uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const philox::Words r = philox::block(seed, j, philox::kBits);
  const int64_t first = int64_t(4 * j - offset);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (first + k >= 0 && first + k < n) to[first + k] = philox::uniform_from(r.v[k], low, range);
}

}  // namespace

void draw_normal(const Tensor& to, uint64_t seed, uint64_t offset) {
  const int64_t n = to.numel(), pairs = n == 0 ? 0 : n / 2 + 1;
  launch({blocks_for(pairs, kThreads), kThreads}, normals, pointer<float>(to), n, seed, offset);
}

void draw_uniform(const Tensor& to, float low, float range, uint64_t seed, uint64_t offset) {
  const int64_t n = to.numel(), blocks = n == 0 ? 0 : n / 4 + 2;
  launch({blocks_for(blocks, kThreads), kThreads}, uniforms, pointer<float>(to), n, low, range, seed, offset);
}

}  // namespace rivulet::cuda
