// Tiles of attention in f32 and f64, shared by its forward and backward kernels. A block of 128 threads is
// 8 groups (ty) of 16 (tx). Of a tile of scores, thread (ty, tx) holds rows ty + 8 i and columns tx + 16 j;
// of a tile of outputs, the same rows and the channels given by `channel`. All 16 threads of a row lie in
// one half of a warp.
#pragma once

#include "tensor/cuda.cuh"

namespace rivulet::cuda {

constexpr int kAttentionThreads = 128;

// kRows x kRows scores, heads of up to kWidth channels. Rows in shared memory are padded by one pack, so
// that 16 threads reading 16 rows hit different banks.
template <class T, int kRows, int kWidth>
struct AttentionTile {
  static constexpr int kMine = kRows / 8, kOthers = kRows / 16, kChannels = kWidth / 16,
                       kGroup = kChannels < 4 ? kChannels : 4, kStride = kWidth + 4, kScoreStride = kRows + 4;

  using Scores = T[kMine][kOthers];
  using Outputs = T[kMine][kChannels];

  static __device__ int ty() { return int(threadIdx.x) / 16; }
  static __device__ int tx() { return int(threadIdx.x) % 16; }
  static __device__ int row(int i) { return ty() + 8 * i; }
  static __device__ int column(int j) { return tx() + 16 * j; }
  // Channel of output c: groups of kGroup neighbours, 16 threads apart.
  static __device__ int channel(int c) { return (c / kGroup * 16 + tx()) * kGroup + c % kGroup; }

  // to [kRows][kStride] = rows first .. of x times `factor`, zero beyond `rows` and d.
  static __device__ void load(const T* x, int64_t stride, int first, int rows, int d, bool packs, T factor,
                              T* to) {
    constexpr int kPacks = kWidth / 4;
    for (int at = threadIdx.x; at < kRows * kPacks; at += kAttentionThreads) {
      const int r = at / kPacks, c = at % kPacks * 4;
      const T* from = x + (first + r) * stride + c;
      Pack<T, 4> v{};
      if (first + r < rows && c < d) {
        if (packs) {
          v = load_pack<T, 4>(from);
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k) v.v[k] = c + k < d ? from[k] : T(0);
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) v.v[k] *= factor;
      store_pack(to + r * kStride + c, v);
    }
  }

  // s = a b' for two tiles of rows.
  static __device__ void scores(const T* a, const T* b, Scores& s) {
#pragma unroll
    for (int i = 0; i < kMine; ++i)
#pragma unroll
      for (int j = 0; j < kOthers; ++j) s[i][j] = 0;
#pragma unroll 2
    for (int c = 0; c < kWidth; c += 4) {
      Pack<T, 4> fb[kOthers];
#pragma unroll
      for (int j = 0; j < kOthers; ++j) fb[j] = load_pack<T, 4>(b + column(j) * kStride + c);
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const Pack<T, 4> fa = load_pack<T, 4>(a + row(i) * kStride + c);
#pragma unroll
        for (int j = 0; j < kOthers; ++j)
#pragma unroll
          for (int k = 0; k < 4; ++k) s[i][j] += fa.v[k] * fb[j].v[k];
      }
    }
  }

  static __device__ void store_scores(const Scores& s, T* to) {
#pragma unroll
    for (int i = 0; i < kMine; ++i)
#pragma unroll
      for (int j = 0; j < kOthers; ++j) to[row(i) * kScoreStride + column(j)] = s[i][j];
  }

  // out += s x, s in shared memory.
  static __device__ void accumulate(const T* s, const T* x, Outputs& out) {
#pragma unroll 1
    for (int k0 = 0; k0 < kRows; k0 += 4) {
      Pack<T, 4> fs[kMine];
#pragma unroll
      for (int i = 0; i < kMine; ++i) fs[i] = load_pack<T, 4>(s + row(i) * kScoreStride + k0);
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int c = 0; c < kChannels; c += kGroup) {
          const auto fx = load_pack<T, kGroup>(x + (k0 + k) * kStride + channel(c));
#pragma unroll
          for (int i = 0; i < kMine; ++i)
#pragma unroll
            for (int g = 0; g < kGroup; ++g) out[i][c + g] += fs[i].v[k] * fx.v[g];
        }
    }
  }

  // f(row, channel, value)
  template <class F>
  static __device__ void for_each_output(const Outputs& out, F&& f) {
#pragma unroll
    for (int i = 0; i < kMine; ++i)
#pragma unroll
      for (int c = 0; c < kChannels; ++c) f(row(i), channel(c), i, out[i][c]);
  }
};

// A strided [B, N, H, D] tensor with a dense last dim.
template <class T>
struct HeadRows {
  T* p;
  int64_t step_b, stride, step_h;
  HeadRows(const Tensor& x)  // NOLINT: an argument of kernels
      : p(x.data<T>()), step_b(x.strides()[0]), stride(x.strides()[1]), step_h(x.strides()[2]) {}
  __device__ T* at(int b, int h) const { return p + b * step_b + h * step_h; }
  // Whole packs of 4 may be read in every row.
  bool packs(int64_t d) const {
    constexpr int64_t n = 4;
    return d % n == 0 && step_b % n == 0 && stride % n == 0 && step_h % n == 0 &&
           is_aligned(p, n * int64_t(sizeof(T)));
  }
};

template <class T>
__device__ T exp2_of(T x) {
  return exp2(x);
}

constexpr double kLog2E = 1.4426950408889634;

}  // namespace rivulet::cuda
