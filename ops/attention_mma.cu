// bf16 attention for every GPU from sm_80 on. A block has 64 queries (or, for the gradients of keys and
// values, 64 keys) and walks over the others; scores, weights and sums stay in registers.
#include "ops/attention_mma.cuh"

namespace rivulet::cuda {
namespace {

struct MmaArguments {
  Rows16 q, dout, k[kMaxSegments], v[kMaxSegments];
  KeyTiles keys;
  int queries, heads, d;
  float scale;
  const uint8_t* mask;
  float* lse;
  const float2* stats;  // [B, H, stat_rows]
  int stat_rows;
  __nv_bfloat16 *out, *dq, *dk[kMaxSegments], *dv[kMaxSegments];
};

// A pair of rows of a block's result: row r and r + 8 of this thread, first column 2 (lane % 4).
template <int kWidth>
__device__ void store_rows(const float (&o)[kWidth / 2], const float (&factor)[2], __nv_bfloat16* to,
                           int64_t stride, int first, int rows, int d) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + warp * 16 + lane / 4 + 8 * r;
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j)
      if (8 * j < d)
        *reinterpret_cast<__nv_bfloat162*>(to + row * stride + 8 * j + lane % 4 * 2) =
            __floats2bfloat162_rn(o[4 * j + 2 * r] * factor[r], o[4 * j + 2 * r + 1] * factor[r]);
  }
}

// Keys and values of one tile, as two tiles in shared memory.
template <int kWidth>
__device__ void copy_keys(const MmaArguments& x, int tile, int b, int h, __nv_bfloat16* to) {
  using Tile = MmaTile<kWidth>;
  const int s = x.keys.segment_of_tile(tile), row = (tile - x.keys.tiles_before[s]) * kMmaRows;
  Tile::copy(x.k[s].at(b, h), x.k[s].stride, row, x.keys.rows[s], x.d, to);
  Tile::copy(x.v[s].at(b, h), x.v[s].stride, row, x.keys.rows[s], x.d, to + Tile::kElements);
}

// for tile in [0, tiles): body(tile, shared memory of it), while copy(tile + 1, other shared memory) runs.
template <class Copy, class Body>
__device__ void pipeline(int tiles, __nv_bfloat16* shared, int elements, Copy&& copy, Body&& body) {
  copy(0, shared);
  copy_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) copy(tile + 1, shared + (tile + 1) % 2 * elements);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    body(tile, shared + tile % 2 * elements);
    __syncthreads();  // before the next copy overwrites this buffer
  }
}

template <int kWidth, bool kMasked>
__global__ void __launch_bounds__(kMmaThreads) forward_kernel(const __grid_constant__ MmaArguments x) {
  using Tile = MmaTile<kWidth>;
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  const int q0 = int(blockIdx.x) * kMmaRows, h = int(blockIdx.y), b = int(blockIdx.z);
  const uint8_t* mask = kMasked ? x.mask + int64_t(b) * x.keys.keys : nullptr;
  const int tiles = kMasked ? tiles_that_count(x.keys, mask, kMmaRows) : x.keys.tiles;
  // The queries pass through the second buffer, which the first tile of keys does not use.
  __nv_bfloat16* queries = shared + 2 * Tile::kElements;
  Tile::copy(x.q.at(b, h), x.q.stride, q0, x.queries, x.d, queries);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  typename Tile::Rows q;
  Tile::load(queries, q);
  __syncthreads();
  typename Tile::Output o = {};
  OnlineSoftmax softmax;
  pipeline(
      tiles, shared, 2 * Tile::kElements,
      [&](int tile, __nv_bfloat16* to) { copy_keys<kWidth>(x, tile, b, h, to); },
      [&](int tile, const __nv_bfloat16* keys) {
        float s[kMmaRows / 2], shrink[2];
        uint32_t p[kMmaRows / 4];
        Tile::template multiply_rows<kMmaRows>(q, keys, s);
        mask_scores<kMmaRows, kMasked>(x.keys, mask, tile, s);
        softmax.weigh(s, x.scale * kLog2Ef, shrink);
#pragma unroll
        for (int i = 0; i < kWidth / 2; ++i) o[i] *= shrink[i / 2 % 2];
        to_operand(s, p);
        Tile::template multiply_columns<kMmaRows>(p, keys + Tile::kElements, o);
      });
  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int lane = int(threadIdx.x) % 32, row = q0 + int(threadIdx.x) / 32 * 16 + lane / 4 + 8 * r;
    const float sum = quad_sum(softmax.sum[r]);
    inverse[r] = sum == 0 ? 0.f : 1 / sum;
    if (lane % 4 == 0 && row < x.queries)
      x.lse[(int64_t(b) * x.heads + h) * x.queries + row] =
          sum == 0 ? INFINITY : softmax.top[r] * (x.scale * kLog2Ef) + __log2f(sum);
  }
  store_rows<kWidth>(o, inverse, x.out + (int64_t(b) * x.queries * x.heads + h) * x.d, int64_t(x.heads) * x.d,
                     q0, x.queries, x.d);
}

// dq of 64 queries.
template <int kWidth, bool kMasked>
__global__ void __launch_bounds__(kMmaThreads, 2) query_grad_kernel(const __grid_constant__ MmaArguments x) {
  using Tile = MmaTile<kWidth>;
  constexpr int kStep = 32;  // keys at a time, for want of registers
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  const int q0 = int(blockIdx.x) * kMmaRows, h = int(blockIdx.y), b = int(blockIdx.z);
  const uint8_t* mask = kMasked ? x.mask + int64_t(b) * x.keys.keys : nullptr;
  const int tiles = kMasked ? tiles_that_count(x.keys, mask, kMmaRows) : x.keys.tiles;
  __nv_bfloat16* queries = shared + 2 * Tile::kElements;
  Tile::copy(x.q.at(b, h), x.q.stride, q0, x.queries, x.d, queries);
  Tile::copy(x.dout.at(b, h), x.dout.stride, q0, x.queries, x.d, queries + Tile::kElements);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  typename Tile::Rows q, dout;
  Tile::load(queries, q);
  Tile::load(queries + Tile::kElements, dout);
  __syncthreads();
  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = q0 + int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4 + 8 * r;
    const float2 stat = x.stats[(int64_t(b) * x.heads + h) * x.stat_rows + row];
    lse[r] = stat.x;
    delta[r] = stat.y;
  }
  typename Tile::Output sum = {};
  const float scale2 = x.scale * kLog2Ef;
  pipeline(
      tiles, shared, 2 * Tile::kElements,
      [&](int tile, __nv_bfloat16* to) { copy_keys<kWidth>(x, tile, b, h, to); },
      [&](int tile, const __nv_bfloat16* keys) {
        const int segment = x.keys.segment_of_tile(tile),
                  row = (tile - x.keys.tiles_before[segment]) * kMmaRows;
        const uint8_t* tile_mask = kMasked ? mask + x.keys.keys_before[segment] + row : nullptr;
#pragma unroll 1
        for (int first = 0; first < kMmaRows; first += kStep) {
          const int valid = x.keys.rows[segment] - row - first;
          if (valid <= 0) break;
          float s[kStep / 2], dp[kStep / 2];
          uint32_t ds[kStep / 4];
          Tile::template multiply_rows<kStep>(q, keys + first * Tile::kPitch, s);
          Tile::template multiply_rows<kStep>(dout, keys + Tile::kElements + first * Tile::kPitch, dp);
#pragma unroll
          for (int i = 0; i < kStep / 2; ++i) {
            const int key = i / 4 * 8 + int(threadIdx.x) % 4 * 2 + i % 2, r = i / 2 % 2;
            const bool counts = key < valid && (!kMasked || tile_mask[first + key] != 0);
            dp[i] = counts ? fast_exp2(s[i] * scale2 - lse[r]) * (dp[i] - delta[r]) : 0.f;
          }
          to_operand(dp, ds);
          Tile::template multiply_columns<kStep>(ds, keys + first * Tile::kPitch, sum);
        }
      });
  const float factor[2] = {x.scale, x.scale};
  store_rows<kWidth>(sum, factor, x.dq + (int64_t(b) * x.queries * x.heads + h) * x.d, int64_t(x.heads) * x.d,
                     q0, x.queries, x.d);
}

// dk and dv of 64 keys: the same products transposed, rows are keys and columns queries.
template <int kWidth, bool kMasked>
__global__ void __launch_bounds__(kMmaThreads, 2) key_grad_kernel(const __grid_constant__ MmaArguments x) {
  using Tile = MmaTile<kWidth>;
  constexpr int kStep = 32;
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  __shared__ float2 stats[2][kMmaRows];
  const int h = int(blockIdx.y), b = int(blockIdx.z), segment = x.keys.segment_of_tile(int(blockIdx.x));
  const int k0 = (int(blockIdx.x) - x.keys.tiles_before[segment]) * kMmaRows, rows = x.keys.rows[segment];
  bool counts[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = k0 + int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4 + 8 * r;
    counts[r] =
        row < rows && (!kMasked || x.mask[int64_t(b) * x.keys.keys + x.keys.keys_before[segment] + row] != 0);
  }
  // A tile of keys that nothing attends to has zero gradients without a walk over the queries.
  const bool any = __syncthreads_or(counts[0] || counts[1]) != 0;
  __nv_bfloat16* keys = shared + 2 * Tile::kElements;
  copy_keys<kWidth>(x, int(blockIdx.x), b, h, keys);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  typename Tile::Rows k, v;
  Tile::load(keys, k);
  Tile::load(keys + Tile::kElements, v);
  __syncthreads();
  typename Tile::Output dk = {}, dv = {};
  const float scale2 = x.scale * kLog2Ef;
  const float2* head_stats = x.stats + (int64_t(b) * x.heads + h) * x.stat_rows;
  const int tiles = any ? (x.queries + kMmaRows - 1) / kMmaRows : 0;
  if (tiles > 0)
    pipeline(
        tiles, shared, 2 * Tile::kElements,
        [&](int tile, __nv_bfloat16* to) {
          const int q0 = tile * kMmaRows, t = int(threadIdx.x);
          Tile::copy(x.q.at(b, h), x.q.stride, q0, x.queries, x.d, to);
          Tile::copy(x.dout.at(b, h), x.dout.stride, q0, x.queries, x.d, to + Tile::kElements);
          if (t < kMmaRows) stats[tile % 2][t] = head_stats[q0 + t];
        },
        [&](int tile, const __nv_bfloat16* queries) {
#pragma unroll 1
          for (int first = 0; first < kMmaRows; first += kStep) {
            float s[kStep / 2], dp[kStep / 2];
            uint32_t p[kStep / 4];
            const __nv_bfloat16 *q = queries + first * Tile::kPitch, *dout = q + Tile::kElements;
            Tile::template multiply_rows<kStep>(k, q, s);
            Tile::template multiply_rows<kStep>(v, dout, dp);
#pragma unroll
            for (int i = 0; i < kStep / 2; ++i) {
              const int query = first + i / 4 * 8 + int(threadIdx.x) % 4 * 2 + i % 2;
              const float2 stat = stats[tile % 2][query];
              s[i] = counts[i / 2 % 2] ? fast_exp2(s[i] * scale2 - stat.x) : 0.f;
              dp[i] = s[i] * (dp[i] - stat.y);
            }
            to_operand(s, p);
            Tile::template multiply_columns<kStep>(p, dout, dv);
            to_operand(dp, p);
            Tile::template multiply_columns<kStep>(p, q, dk);
          }
        });
  const float one[2] = {1, 1}, factor[2] = {x.scale, x.scale};
  const int64_t first = (int64_t(b) * rows * x.heads + h) * x.d, stride = int64_t(x.heads) * x.d;
  store_rows<kWidth>(dk, factor, x.dk[segment] + first, stride, k0, rows, x.d);
  store_rows<kWidth>(dv, one, x.dv[segment] + first, stride, k0, rows, x.d);
}

MmaArguments arguments(const ForwardInput& in) {
  MmaArguments x{.q = Rows16(in.q),
                 .dout = {},
                 .k = {},
                 .v = {},
                 .keys = KeyTiles(in.k, kMmaRows),
                 .queries = int(in.q.dim(1)),
                 .heads = int(in.q.dim(2)),
                 .d = int(in.q.dim(3)),
                 .scale = in.scale,
                 .mask = pointer<uint8_t>(in.mask),
                 .lse = nullptr,
                 .stats = nullptr,
                 .stat_rows = 0,
                 .out = nullptr,
                 .dq = nullptr,
                 .dk = {},
                 .dv = {}};
  for (size_t i = 0; i < in.k.size(); ++i) {
    x.k[i] = Rows16(in.k[i]);
    x.v[i] = Rows16(in.v[i]);
  }
  return x;
}

template <int kWidth>
void run(void (*kernel)(MmaArguments), const MmaArguments& x, int tiles, int64_t batch) {
  constexpr int kBytes = 4 * MmaTile<kWidth>::kElements * int(sizeof(bf16));
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  launch({dim3(unsigned(tiles), unsigned(x.heads), unsigned(batch)), kMmaThreads, kBytes}, kernel, x);
}

}  // namespace

void attention_mma(const ForwardInput& in, const Tensor& out, const Tensor& lse) {
  MmaArguments x = arguments(in);
  x.lse = lse.data<float>();
  x.out = pointer<__nv_bfloat16>(out);
  dispatch_bf16_width(x.d, [&]<int kWidth>() {
    run<kWidth>(x.mask ? forward_kernel<kWidth, true> : forward_kernel<kWidth, false>, x,
                int(blocks_for(x.queries, kMmaRows)), in.q.dim(0));
  });
}

void attention_backward_mma(const BackwardInput& in, const Tensor& dq, const Tensors& dk, const Tensors& dv) {
  MmaArguments x = arguments(in);
  x.dout = Rows16(in.dout);
  x.stats = reinterpret_cast<const float2*>(in.stats.data<float>());
  x.stat_rows = int(in.stats.dim(2));
  x.dq = pointer<__nv_bfloat16>(dq);
  for (size_t i = 0; i < dk.size(); ++i) {
    x.dk[i] = pointer<__nv_bfloat16>(dk[i]);
    x.dv[i] = pointer<__nv_bfloat16>(dv[i]);
  }
  dispatch_bf16_width(x.d, [&]<int kWidth>() {
    run<kWidth>(x.mask ? query_grad_kernel<kWidth, true> : query_grad_kernel<kWidth, false>, x,
                int(blocks_for(x.queries, kMmaRows)), in.q.dim(0));
    run<kWidth>(x.mask ? key_grad_kernel<kWidth, true> : key_grad_kernel<kWidth, false>, x, x.keys.tiles,
                in.q.dim(0));
  });
}

}  // namespace rivulet::cuda
