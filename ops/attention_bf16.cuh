// bf16 attention on tensor cores: what its kernels share. There are two sets of them, for Hopper (wgmma) and
// for every GPU from sm_80 on (mma.sync); attention_bf16.cu chooses.
#pragma once

#include "ops/attention.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {

constexpr int kMaxSegments = 6;
constexpr float kLog2Ef = 1.4426950408889634f;

// Keys in several tensors, cut into tiles that never reach over the end of one.
struct KeyTiles {
  int segments = 0, tiles = 0, keys = 0;  // tiles and keys of all segments
  int rows[kMaxSegments] = {}, tiles_before[kMaxSegments] = {}, keys_before[kMaxSegments] = {};

  KeyTiles(const Tensors& k, int tile_rows) {
    for (const Tensor& x : k) {
      rows[segments] = int(x.dim(1));
      tiles_before[segments] = tiles;
      keys_before[segments] = keys;
      keys += rows[segments];
      tiles += (rows[segments] + tile_rows - 1) / tile_rows;
      ++segments;
    }
  }
  __device__ int segment_of_tile(int tile) const {
    int s = 0;
    while (s + 1 < segments && tile >= tiles_before[s + 1]) ++s;
    return s;
  }
  __device__ int segment_of_key(int key) const {
    int s = 0;
    while (s + 1 < segments && key >= keys_before[s + 1]) ++s;
    return s;
  }
};

// All tensors: last dim dense, D at most 128 and a multiple of 8, 16-byte aligned rows; scale > 0. out, dout,
// dq, dk, dv are dense. lse and delta [B, H, N] f32.
struct ForwardInput {
  Tensor q;
  Tensors k, v;
  float scale;
  Tensor mask;  // dense [B, keys] u8 or undefined
};
struct BackwardInput : ForwardInput {
  Tensor dout, lse, delta;
};

void attention_wgmma(const ForwardInput& in, const Tensor& out, const Tensor& lse);
void attention_mma(const ForwardInput& in, const Tensor& out, const Tensor& lse);
void attention_backward_wgmma(const BackwardInput& in, const Tensor& dq, const Tensors& dk, const Tensors& dv);
void attention_backward_mma(const BackwardInput& in, const Tensor& dq, const Tensors& dk, const Tensors& dv);

// 2^x, accurate to two units in the last place.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The largest (or the sum) over the four lanes that hold a row of an accumulator.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// One past the last tile with a key that counts, at least 1: padding at the end of a text costs nothing. All
// threads of the block call it.
__device__ inline int tiles_that_count(const KeyTiles& keys, const uint8_t* mask, int tile_rows) {
  __shared__ int last;
  if (threadIdx.x == 0) last = 1;
  __syncthreads();
  int mine = 1;
  for (int key = int(threadIdx.x); key < keys.keys; key += int(blockDim.x)) {
    if (mask[key] == 0) continue;
    const int s = keys.segment_of_key(key);
    mine = keys.tiles_before[s] + (key - keys.keys_before[s]) / tile_rows + 1;
  }
  atomicMax(&last, mine);
  __syncthreads();
  return last;
}

}  // namespace rivulet::cuda
