#include "ops/attention.h"

#include "ops/attention.cuh"

namespace rivulet::cuda {
namespace {

struct AttentionSizes {
  int n, m, h, d;  // queries, keys, heads, channels
  bool packs;
};

template <class T>
__device__ T minus_infinity() {
  return T(-INFINITY);
}

// The largest (or the sum) over the 16 threads of a row.
template <class T>
__device__ T row_max(T x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, x, step);
    x = other > x ? other : x;
  }
  return x;
}
template <class T>
__device__ T row_sum(T x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// One block: kRows queries of one (batch, head) against all keys, tile after tile.
template <class T, int kRows, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_kernel(AttentionSizes n, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v, T scale2,
                     const uint8_t* mask, HeadRows<T> out, T* lse) {
  using Tile = AttentionTile<T, kRows, kWidth>;
  extern __shared__ __align__(32) unsigned char shared[];
  T* queries = reinterpret_cast<T*>(shared);
  T* other = queries + kRows * Tile::kStride;  // first the keys of a tile, then its values
  T* weights = other + kRows * Tile::kStride;
  const int q0 = int(blockIdx.x) * kRows, h = int(blockIdx.y), b = int(blockIdx.z);
  Tile::load(q.at(b, h), q.stride, q0, n.n, n.d, n.packs, scale2, queries);

  typename Tile::Outputs o = {};
  T top[Tile::kMine], sum[Tile::kMine];  // sum: this thread's share
#pragma unroll
  for (int i = 0; i < Tile::kMine; ++i) {
    top[i] = minus_infinity<T>();
    sum[i] = 0;
  }
  for (int k0 = 0; k0 < n.m; k0 += kRows) {
    __syncthreads();  // the values of the tile before have been read
    Tile::load(k.at(b, h), k.stride, k0, n.m, n.d, n.packs, T(1), other);
    __syncthreads();
    typename Tile::Scores s;
    Tile::scores(queries, other, s);
#pragma unroll
    for (int j = 0; j < Tile::kOthers; ++j) {
      const int key = k0 + Tile::column(j);
      if (key >= n.m || (mask != nullptr && mask[int64_t(b) * n.m + key] == 0))
#pragma unroll
        for (int i = 0; i < Tile::kMine; ++i) s[i][j] = minus_infinity<T>();
    }
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i) {
      T most = top[i];
#pragma unroll
      for (int j = 0; j < Tile::kOthers; ++j) most = s[i][j] > most ? s[i][j] : most;
      most = row_max(most);
      const T base = most == minus_infinity<T>() ? T(0) : most, shrink = exp2_of(top[i] - base);
      top[i] = most;
      sum[i] *= shrink;
#pragma unroll
      for (int j = 0; j < Tile::kOthers; ++j) {
        s[i][j] = exp2_of(s[i][j] - base);
        sum[i] += s[i][j];
      }
#pragma unroll
      for (int c = 0; c < Tile::kChannels; ++c) o[i][c] *= shrink;
    }
    Tile::store_scores(s, weights);
    __syncthreads();  // the keys have been read
    Tile::load(v.at(b, h), v.stride, k0, n.m, n.d, n.packs, T(1), other);
    __syncthreads();
    Tile::accumulate(weights, other, o);
  }

  T inverse[Tile::kMine];
#pragma unroll
  for (int i = 0; i < Tile::kMine; ++i) {
    const T total = row_sum(sum[i]);
    inverse[i] = total == T(0) ? T(0) : T(1) / total;
    const int row = q0 + Tile::row(i);
    if (Tile::tx() == 0 && row < n.n)
      lse[(int64_t(b) * n.h + h) * n.n + row] = total == T(0) ? -minus_infinity<T>() : top[i] + log2(total);
  }
  T* to = out.at(b, h);
  Tile::for_each_output(o, [&](int row, int c, int i, T value) {
    if (q0 + row < n.n && c < n.d) to[(q0 + row) * out.stride + c] = value * inverse[i];
  });
}

// delta [B, H, N] = dout . out, a warp per row.
template <class T>
__global__ void delta_kernel(AttentionSizes n, int64_t rows, const T* dout, const T* out, T* delta) {
  const int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;  // (b * N + i) * H + h
  if (row >= rows) return;
  const int lane = int(threadIdx.x) % 32;
  T sum = 0;
  for (int c = lane; c < n.d; c += 32) sum += dout[row * n.d + c] * out[row * n.d + c];
  sum = warp_reduce(sum, Plus{});
  const int64_t token = row / n.h, h = row % n.h;
  if (lane == 0) delta[(token / n.n * n.h + h) * n.n + token % n.n] = sum;
}

template <class T>
struct BackwardArguments {
  HeadRows<T> q, k, v, dout;
  T scale;
  const uint8_t* mask;
  const T *lse, *delta;
};

// p and ds of one pair of query and key; a key that does not count gives zeros.
template <class T>
__device__ void score_grad(const AttentionSizes& n, const BackwardArguments<T>& x, int b, int h, int query,
                           int key, T& s, T& dp) {
  const bool counts = query < n.n && key < n.m && (x.mask == nullptr || x.mask[int64_t(b) * n.m + key] != 0);
  const int64_t at = (int64_t(b) * n.h + h) * n.n + query;
  s = counts ? exp2_of(s - x.lse[at]) : T(0);
  dp = counts ? x.scale * s * (dp - x.delta[at]) : T(0);
}

// One block: dq of kRows queries.
template <class T, int kRows, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads)
    query_grad_kernel(AttentionSizes n, BackwardArguments<T> x, HeadRows<T> dq) {
  using Tile = AttentionTile<T, kRows, kWidth>;
  extern __shared__ __align__(32) unsigned char shared[];
  T* queries = reinterpret_cast<T*>(shared);
  T* grads = queries + kRows * Tile::kStride;
  T* keys = grads + kRows * Tile::kStride;
  T* values = keys + kRows * Tile::kStride;
  T* ds = values + kRows * Tile::kStride;
  const int q0 = int(blockIdx.x) * kRows, h = int(blockIdx.y), b = int(blockIdx.z);
  Tile::load(x.q.at(b, h), x.q.stride, q0, n.n, n.d, n.packs, T(x.scale * T(kLog2E)), queries);
  Tile::load(x.dout.at(b, h), x.dout.stride, q0, n.n, n.d, n.packs, T(1), grads);
  typename Tile::Outputs sum = {};
  for (int k0 = 0; k0 < n.m; k0 += kRows) {
    __syncthreads();  // the tile before has been read
    Tile::load(x.k.at(b, h), x.k.stride, k0, n.m, n.d, n.packs, T(1), keys);
    Tile::load(x.v.at(b, h), x.v.stride, k0, n.m, n.d, n.packs, T(1), values);
    __syncthreads();
    typename Tile::Scores s, dp;
    Tile::scores(queries, keys, s);
    Tile::scores(grads, values, dp);
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kOthers; ++j)
        score_grad(n, x, b, h, q0 + Tile::row(i), k0 + Tile::column(j), s[i][j], dp[i][j]);
    Tile::store_scores(dp, ds);
    __syncthreads();
    Tile::accumulate(ds, keys, sum);
  }
  T* to = dq.at(b, h);
  Tile::for_each_output(sum, [&](int row, int c, int, T value) {
    if (q0 + row < n.n && c < n.d) to[(q0 + row) * dq.stride + c] = value;
  });
}

// One block: dk and dv of kRows keys, from the queries of one part. dk, dv [parts, B, M, H, D] dense.
template <class T, int kRows, int kWidth>
__global__ void __launch_bounds__(kAttentionThreads)
    key_grad_kernel(AttentionSizes n, BackwardArguments<T> x, int tiles, int tiles_per_part, T* dk, T* dv) {
  using Tile = AttentionTile<T, kRows, kWidth>;
  extern __shared__ __align__(32) unsigned char shared[];
  T* keys = reinterpret_cast<T*>(shared);
  T* values = keys + kRows * Tile::kStride;
  T* queries = values + kRows * Tile::kStride;
  T* grads = queries + kRows * Tile::kStride;
  T* weights = grads + kRows * Tile::kStride;
  const int part = int(blockIdx.x) / tiles, k0 = int(blockIdx.x) % tiles * kRows, h = int(blockIdx.y),
            b = int(blockIdx.z);
  Tile::load(x.k.at(b, h), x.k.stride, k0, n.m, n.d, n.packs, T(x.scale * T(kLog2E)), keys);
  Tile::load(x.v.at(b, h), x.v.stride, k0, n.m, n.d, n.packs, T(1), values);
  typename Tile::Outputs key_sum = {}, value_sum = {};
  const int last = min(n.n, (part + 1) * tiles_per_part * kRows);
  for (int q0 = part * tiles_per_part * kRows; q0 < last; q0 += kRows) {
    __syncthreads();  // the tile before has been read
    Tile::load(x.q.at(b, h), x.q.stride, q0, n.n, n.d, n.packs, T(1), queries);
    Tile::load(x.dout.at(b, h), x.dout.stride, q0, n.n, n.d, n.packs, T(1), grads);
    __syncthreads();
    typename Tile::Scores s, dp;  // rows: keys, columns: queries
    Tile::scores(keys, queries, s);
    Tile::scores(values, grads, dp);
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kOthers; ++j)
        score_grad(n, x, b, h, q0 + Tile::column(j), k0 + Tile::row(i), s[i][j], dp[i][j]);
    Tile::store_scores(s, weights);
    __syncthreads();
    Tile::accumulate(weights, grads, value_sum);
    __syncthreads();
    Tile::store_scores(dp, weights);
    __syncthreads();
    Tile::accumulate(weights, queries, key_sum);
  }
  const auto at = [&](int row, int c) {
    return (((int64_t(part) * gridDim.z + b) * n.m + k0 + row) * n.h + h) * n.d + c;
  };
  Tile::for_each_output(key_sum, [&](int row, int c, int, T value) {
    if (k0 + row < n.m && c < n.d) dk[at(row, c)] = value;
  });
  Tile::for_each_output(value_sum, [&](int row, int c, int, T value) {
    if (k0 + row < n.m && c < n.d) dv[at(row, c)] = value;
  });
}

// Calls f.template operator()<kWidth>() with the least width that holds d channels.
template <class F>
void dispatch_width(int64_t d, F&& f) {
  check(d <= 256, "attention: the head dim is ", d, ", the GPU's tiles hold at most 256");
  if (d <= 32)
    f.template operator()<32>();
  else if (d <= 128)
    f.template operator()<128>();
  else
    f.template operator()<256>();
}

// Rows of a tile: what registers and 99 KB of shared memory hold.
template <class T, int kWidth>
constexpr int kForwardRows = sizeof(T) == 4 && kWidth <= 128 ? 64 : 32;
template <class T, int kWidth>
constexpr int kBackwardRows = sizeof(T) == 4 && kWidth <= 32 ? 64 : 32;

// Bytes of shared memory of `tiles` tiles of rows and one of scores, after asking for them.
template <class T, int kRows, int kWidth, class Kernel>
size_t shared_bytes(Kernel kernel, int tiles) {
  using Tile = AttentionTile<T, kRows, kWidth>;
  const size_t bytes = sizeof(T) * kRows * (size_t(tiles) * Tile::kStride + Tile::kScoreStride);
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  return bytes;
}

AttentionSizes sizes_of(const Tensor& q, const Tensor& k, bool packs) {
  return {int(q.dim(1)), int(k.dim(1)), int(q.dim(2)), int(q.dim(3)), packs};
}

}  // namespace

void attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, const Tensor& key_mask,
               Tensor& out, Tensor& lse) {
  dispatch_real(q.dtype(), "attention", [&]<class T>() {
    const HeadRows<T> rq(q), rk(k), rv(v);
    const int64_t d = q.dim(3);
    dispatch_width(d, [&]<int kWidth>() {
      constexpr int kRows = kForwardRows<T, kWidth>;
      const auto kernel = attention_kernel<T, kRows, kWidth>;
      const size_t bytes = shared_bytes<T, kRows, kWidth>(kernel, 2);
      const dim3 grid(blocks_for(q.dim(1), kRows), unsigned(q.dim(2)), unsigned(q.dim(0)));
      launch({grid, kAttentionThreads, bytes}, kernel,
             sizes_of(q, k, rq.packs(d) && rk.packs(d) && rv.packs(d)), rq, rk, rv, T(scale * kLog2E),
             pointer<uint8_t>(key_mask), HeadRows<T>(out), lse.data<T>());
    });
  });
}

void attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                        const Tensor& key_mask, const Tensor& out, const Tensor& lse, Tensor& dq, Tensor& dk,
                        Tensor& dv) {
  dispatch_real(q.dtype(), "attention", [&]<class T>() {
    const Tensor delta = empty_like(lse);
    const BackwardArguments<T> x{
        q, k, v, dout, T(scale), pointer<uint8_t>(key_mask), lse.data<T>(), delta.data<T>()};
    const int64_t batch = q.dim(0), heads = q.dim(2), d = q.dim(3), rows = q.numel() / d;
    const AttentionSizes n = sizes_of(q, k, x.q.packs(d) && x.k.packs(d) && x.v.packs(d) && x.dout.packs(d));
    launch({blocks_for(rows, kThreads / 32), kThreads}, delta_kernel<T>, n, rows, dout.data<T>(),
           out.data<T>(), delta.data<T>());
    dispatch_width(d, [&]<int kWidth>() {
      constexpr int kRows = kBackwardRows<T, kWidth>;
      const auto of_queries = query_grad_kernel<T, kRows, kWidth>;
      const auto of_keys = key_grad_kernel<T, kRows, kWidth>;
      const unsigned query_tiles = blocks_for(n.n, kRows), key_tiles = blocks_for(n.m, kRows);
      launch({dim3(query_tiles, unsigned(heads), unsigned(batch)), kAttentionThreads,
              shared_bytes<T, kRows, kWidth>(of_queries, 4)},
             of_queries, n, x, HeadRows<T>(dq));

      // Few keys: the queries are cut into parts as well, whose sums are added up in order.
      const int64_t blocks = key_tiles * heads * batch, wanted = std::max<int64_t>(1, 512 / blocks);
      const int64_t tiles_per_part = std::max<int64_t>(1, query_tiles / wanted),
                    parts = (query_tiles + tiles_per_part - 1) / tiles_per_part;
      const Shape part_shape{parts, batch, n.m, heads, d};
      const Tensor k_parts = parts == 1 ? dk : Tensor(part_shape, q.dtype(), q.device());
      const Tensor v_parts = parts == 1 ? dv : Tensor(part_shape, q.dtype(), q.device());
      launch({dim3(key_tiles * unsigned(parts), unsigned(heads), unsigned(batch)), kAttentionThreads,
              shared_bytes<T, kRows, kWidth>(of_keys, 4)},
             of_keys, n, x, int(key_tiles), int(tiles_per_part), k_parts.data<T>(), v_parts.data<T>());
      if (parts == 1) return;
      sum_to(dk.unsqueeze(0), k_parts);
      sum_to(dv.unsqueeze(0), v_parts);
    });
  });
}

}  // namespace rivulet::cuda
