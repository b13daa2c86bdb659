// bf16 attention on tensor cores: what its kernels share. There are two sets of them, for Hopper (wgmma) and
// for every GPU from sm_80 on (mma.sync); attention_bf16.cu chooses.
#pragma once

#include "ops/attention.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {

constexpr int kMaxSegments = kMaxAttentionSegments;
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
// dq, dk, dv are dense. lse [B, H, N] f32.
struct ForwardInput {
  Tensor q;
  Tensors k, v;
  float scale;
  Tensor mask;  // dense [B, keys] u8 or undefined
};
// stats [B, H, rows, 2] f32: lse and delta of every query; rows is N rounded up to kStatRows, and the rows
// beyond N hold (inf, 0), which gives them no weight.
constexpr int kStatRows = 128;
struct BackwardInput : ForwardInput {
  Tensor dout, stats;
};

void attention_wgmma(const ForwardInput& in, const Tensor& out, const Tensor& lse);
void attention_mma(const ForwardInput& in, const Tensor& out, const Tensor& lse);
void attention_backward_wgmma(const BackwardInput& in, const Tensor& dq, const Tensors& dk,
                              const Tensors& dv);
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

// The accumulators of a product [16 * warps, kColumns] of either kind: a thread holds rows
// r = 16 * warp + lane / 4 and r + 8. s[4 j + 0, 1] are columns 8 j + 2 (lane % 4) + 0, 1 of row r and
// s[4 j + 2, 3] those of row r + 8. Rounded to bf16 they are the left operand of a further product.
template <int kCount>
__device__ void to_operand(const float (&s)[kCount], uint32_t (&out)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(s[2 * i], s[2 * i + 1]);
    out[i] = reinterpret_cast<const uint32_t&>(pair);
  }
}

// -inf for the keys of a tile that do not count; kMasked: mask [keys] of this batch entry says which.
template <int kKeys, bool kMasked>
__device__ void mask_scores(const KeyTiles& keys, const uint8_t* mask, int tile, float (&scores)[kKeys / 2]) {
  const int segment = keys.segment_of_tile(tile), row = (tile - keys.tiles_before[segment]) * kKeys;
  const int valid = keys.rows[segment] - row, column = int(threadIdx.x) % 4 * 2;
  if (!kMasked && valid >= kKeys) return;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = 8 * j + column + e;
      const bool counts = key < valid && (!kMasked || mask[keys.keys_before[segment] + row + key] != 0);
      if (counts) continue;
      scores[4 * j + e] = -INFINITY;
      scores[4 * j + 2 + e] = -INFINITY;
    }
}

// Largest score and sum of weights of the thread's two rows; the sum is this thread's share.
struct OnlineSoftmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  // Scores become weights relative to the largest so far; what was summed before must be scaled by shrink.
  template <int kCount>
  __device__ void weigh(float (&s)[kCount], float scale2, float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = top[r];
#pragma unroll
      for (int j = 0; j < kCount / 4; ++j) most = fmaxf(most, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
      most = quad_max(most);
      const float base = most == -INFINITY ? 0.f : most * scale2;
      shrink[r] = fast_exp2(top[r] * scale2 - base);
      top[r] = most;
      sum[r] *= shrink[r];
#pragma unroll
      for (int j = 0; j < kCount / 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float p = fast_exp2(s[4 * j + 2 * r + e] * scale2 - base);
          s[4 * j + 2 * r + e] = p;
          sum[r] += p;
        }
    }
  }
};

}  // namespace rivulet::cuda
