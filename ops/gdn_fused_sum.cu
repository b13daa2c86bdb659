#include "ops/gdn_fused.cuh"

// Phase A: P, A, Pz and b of every frame. A write strength enters as its root on both sides of a product,
// which keeps P and Pz symmetric: half their blocks are computed.
namespace rivulet::cuda {
namespace {

constexpr int kSumThreads = 512, kSumTokens = 32, kRawStages = 2;

template <int D>
struct SumTraits {
  static constexpr int kBlocks = D / 16;  // 16 x 16 blocks along a side
  static constexpr int kRows = (kBlocks + 3) / 4, kColumns = (kBlocks + 1) / 2;  // blocks of V'K for one warp
  static constexpr int kPieces = D / 8;                                          // 16-byte pieces of a token
  static constexpr int kTile = kSumTokens * padded(D);  // elements of one operand's tile
  static constexpr int kRaw = kSumTokens * D;           // and of one input's
  static constexpr size_t kShared = std::max<size_t>((2 * 3 * kTile + kRawStages * 3 * kRaw) * sizeof(half_t),
                                                     (D * D + kSumTokens * D) * sizeof(float));
  static_assert(kSumTokens * kPieces <= kSumThreads);
};

__device__ inline void mma_block(float* acc, const Frag& a, const Frag& b) {
  mma(acc, a, b.r[0], b.r[2]);
  mma(acc + 4, a, b.r[1], b.r[3]);
}
// The blocks (i, i + kShift) of X'X, wrapping around; those of all shifts up to half the side make X'X by
// symmetry.
template <int D, int kShift, class F>
__device__ void for_shifted_blocks(F&& f) {
  constexpr int kBlocks = D / 16;
  if constexpr (kShift <= kBlocks / 2) {
#pragma unroll
    for (int i = 0; i < (2 * kShift == kBlocks ? kBlocks / 2 : kBlocks); ++i) f(i, i, (i + kShift) % kBlocks);
  }
}
template <int D, int kShift>
__device__ void add_shifted(float (&acc)[8][8], const half_t* x) {
  if constexpr (kShift <= D / 32) {
#pragma unroll
    for (int k0 = 0; k0 < kSumTokens; k0 += 16) {
      Frag f[D / 16];
#pragma unroll
      for (int i = 0; i < D / 16; ++i) f[i] = tokens_frag<D>(x, k0, 16 * i);
      for_shifted_blocks<D, kShift>([&](int at, int i, int j) { mma_block(acc[at], f[i], f[j]); });
    }
  }
}
// Part (row, column) of V'K.
template <int D>
__device__ void add_part(float (&acc)[8][8], const half_t* v, const half_t* k, int row, int column) {
  using Traits = SumTraits<D>;
#pragma unroll
  for (int k0 = 0; k0 < kSumTokens; k0 += 16) {
    Frag a[Traits::kRows], b[Traits::kColumns];
#pragma unroll
    for (int i = 0; i < Traits::kRows; ++i)
      if (row + i < Traits::kBlocks) a[i] = tokens_frag<D>(v, k0, 16 * (row + i));
#pragma unroll
    for (int j = 0; j < Traits::kColumns; ++j)
      if (column + j < Traits::kBlocks) b[j] = tokens_frag<D>(k, k0, 16 * (column + j));
#pragma unroll
    for (int i = 0; i < Traits::kRows; ++i)
#pragma unroll
      for (int j = 0; j < Traits::kColumns; ++j)
        if (row + i < Traits::kBlocks && column + j < Traits::kBlocks)
          mma_block(acc[Traits::kColumns * i + j], a[i], b[j]);
  }
}
// f.template operator()<kShift>() for the shift of a warp.
template <class F>
__device__ void with_shift(int shift, F&& f) {
  if (shift == 0)
    f.template operator()<0>();
  else if (shift == 1)
    f.template operator()<1>();
  else if (shift == 2)
    f.template operator()<2>();
  else
    f.template operator()<3>();
}

// f(row, column, value) for a 16 x 16 block at (i0, j0).
template <class F>
__device__ void for_block(const float* acc, int i0, int j0, F&& f) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int e = 0; e < 8; ++e) f(i0 + lane / 4 + e % 4 / 2 * 8, j0 + e / 4 * 8 + lane % 4 * 2 + e % 2, acc[e]);
}

// A cluster of kSplit blocks per cell, each with its share of the frame's tokens; the partial sums meet in
// shared memory and are added in order. Warps 0 .. 3: Pz; 4 .. 7: P; 8 .. 15: A' [value, key].
template <int D, int kSplit>
__global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kSumThreads, 1)
    sum_frame_kernel(FusedSizes n, FusedRows k, FusedRows v, const float* beta, ChannelWeights norm,
                     const float* r, const uint32_t* angles, float key_scale, half_t* p, float* p_z, float* a,
                     float* b) {
  using Traits = SumTraits<D>;
  constexpr int kPieces = Traits::kPieces, kTile = Traits::kTile;
  extern __shared__ __align__(16) unsigned char shared[];
  half_t* tiles = reinterpret_cast<half_t*>(shared);
  const FusedCell cell(int(blockIdx.x) / kSplit, n);
  const int rank = int(blockIdx.x) % kSplit, warp = int(threadIdx.x) / 32;
  const int tile_count = (n.s + kSumTokens - 1) / kSumTokens, begin = tile_count * rank / kSplit,
            end = tile_count * (rank + 1) / kSplit;
  const int my_token = int(threadIdx.x) / kPieces, piece = int(threadIdx.x) % kPieces;
  const bool loads = my_token < kSumTokens;

  float weight[8], b_sum[8] = {}, acc[8][8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) weight[i] = norm.at(cell.h * D + 8 * piece + i);
  // A thread copies 16-byte pieces of k, v and the angles for itself, kRawStages tiles ahead of their use; a
  // token's scale and strength come one tile ahead.
  half_t* raw = tiles + 2 * 3 * kTile + 8 * int(threadIdx.x);
  float next_r = 0, next_beta = 0;
  const auto copy = [&](int tile) {
    half_t* to = raw + (tile - begin) % kRawStages * 3 * Traits::kRaw;
    const int token = tile * kSumTokens + my_token, at = min(token, n.s - 1);
    if (loads && tile < end) {
      copy_16_bytes_async(to, k.at(cell, D, at) + 8 * piece, token < n.s);
      copy_16_bytes_async(to + Traits::kRaw, v.at(cell, D, at) + 8 * piece, token < n.s);
      copy_16_bytes_async(to + 2 * Traits::kRaw, angles + int64_t(cell.place(n) + at) * (D / 2) + 4 * piece);
    }
    commit_copies();
  };
  const auto fetch = [&](int tile) {
    const int token = tile * kSumTokens + my_token;
    const bool valid = loads && tile < end && token < n.s;
    next_r = valid ? r[n.tokens() + cell.token(n) + token] : 0;
    next_beta = valid ? beta[int64_t(cell.token(n) + token) * n.h + cell.h] : 0;
  };
  // Makes the operands of a tile.
  const auto put = [&](int tile) {
    wait_copies<kRawStages - 1>();
    if (!loads) return;
    uint32_t* to = reinterpret_cast<uint32_t*>(tiles + (tile - begin) % 2 * 3 * kTile + my_token * padded(D) +
                                               8 * piece);
    const uint32_t* from =
        reinterpret_cast<const uint32_t*>(raw + (tile - begin) % kRawStages * 3 * Traits::kRaw);
    const auto kw = load_pack<uint32_t>(from), vw = load_pack<uint32_t>(from + Traits::kRaw / 2),
               aw = load_pack<uint32_t>(from + Traits::kRaw);
    const float root = sqrtf(next_beta), scale = next_r * key_scale * root;
    Pack<uint32_t, 4> plain, turned, values;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = unpack2(kw.v[i]), turn = unpack_angle(aw.v[i]), value = unpack2(vw.v[i]);
      const float f0 = fmaxf(x.x * weight[2 * i], 0.0f) * scale,
                  f1 = fmaxf(x.y * weight[2 * i + 1], 0.0f) * scale;
      b_sum[2 * i] += f0 * root;
      b_sum[2 * i + 1] += f1 * root;
      plain.v[i] = pack2(f0, f1);
      turned.v[i] = pack2(f0 * turn.x - f1 * turn.y, f0 * turn.y + f1 * turn.x);
      values.v[i] = pack2(value.x * root, value.y * root);
    }
    store_pack(to, plain);
    store_pack(to + kTile / 2, turned);
    store_pack(to + kTile, values);
  };

  // The blocks of A' of this warp begin here.
  const int row = (warp - 8) / 2 * Traits::kRows, column = warp % 2 * Traits::kColumns;
  fetch(begin);
#pragma unroll
  for (int ahead = 0; ahead < kRawStages; ++ahead) copy(begin + ahead);
  if (begin < end) put(begin);
  fetch(begin + 1);
  copy(begin + kRawStages);
  __syncthreads();
  for (int tile = begin; tile < end; ++tile) {
    const half_t* x = tiles + (tile - begin) % 2 * 3 * kTile;
    if (tile + 1 < end) put(tile + 1);
    fetch(tile + 2);
    copy(tile + 1 + kRawStages);
    if (warp >= 8)
      add_part<D>(acc, x + 2 * kTile, x + kTile, row, column);
    else
      with_shift(warp % 4, [&]<int kShift>() { add_shifted<D, kShift>(acc, x + (warp < 4 ? 0 : kTile)); });
    __syncthreads();
  }

  const auto cluster = cooperative_groups::this_cluster();
  const auto meet = [&] {
    if constexpr (kSplit == 1)
      __syncthreads();  // a cluster's barrier would also wait for the results on their way to memory
    else
      cluster.sync();
  };
  float* sums = reinterpret_cast<float*>(shared);  // one D x D matrix at a time, then the parts of b
  float* parts = sums + D * D;
  if (loads)
#pragma unroll
    for (int i = 0; i < 8; ++i) parts[my_token * D + 8 * piece + i] = b_sum[i];
#pragma unroll 1
  for (int what = 0; what < 3; ++what) {
    if (what < 2 && warp / 4 == what) {
      with_shift(warp % 4, [&]<int kShift>() {
        for_shifted_blocks<D, kShift>([&](int at, int i, int j) {
          for_block(acc[at], 16 * i, 16 * j, [&](int y, int x, float value) {
            sums[y * D + x] = value;
            if (i != j) sums[x * D + y] = value;
          });
        });
      });
    } else if (what == 2 && warp >= 8) {
#pragma unroll
      for (int i = 0; i < Traits::kRows; ++i)
#pragma unroll
        for (int j = 0; j < Traits::kColumns; ++j)
          if (row + i < Traits::kBlocks && column + j < Traits::kBlocks)
            for_block(acc[Traits::kColumns * i + j], 16 * (row + i), 16 * (column + j),
                      [&](int y, int x, float value) { sums[y * D + x] = value; });
    }
    meet();
    const int64_t square = int64_t(cell.index) * D * D;
    constexpr int kShare = D * D / 4 / kSplit;
#pragma unroll 4
    for (int i = rank * kShare + int(threadIdx.x); i < (rank + 1) * kShare; i += kSumThreads) {
      float4 total = {};
#pragma unroll
      for (int source = 0; source < kSplit; ++source) {
        const float4 x = reinterpret_cast<const float4*>(cluster.map_shared_rank(sums, source))[i];
        total = {total.x + x.x, total.y + x.y, total.z + x.z, total.w + x.w};
      }
      if (what == 1)
        reinterpret_cast<uint2*>(p + square)[i] = {pack2(total.x, total.y), pack2(total.z, total.w)};
      else
        reinterpret_cast<float4*>((what == 0 ? p_z : a) + square)[i] = total;
    }
    if (what == 0 && rank == 0 && threadIdx.x < D) {
      float total = 0;
      for (int source = 0; source < kSplit; ++source) {
        const float* from = cluster.map_shared_rank(parts, source) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < kSumTokens; ++i) total += from[i * D];
      }
      b[cell.index * D + int(threadIdx.x)] = total;
    }
    meet();
  }
}

// Into how many blocks a cell's tokens go so that the GPU's processors share the work best. A block's start
// and end take about as long as kEdge tiles.
int best_split(int cells, int tiles) {
  constexpr double kEdge = 6;
  const auto time = [&](int split) {
    return (cells * split + processors() - 1) / processors() * (double(tiles) / split + kEdge);
  };
  int best = 1;
  for (const int split : {2, 4})
    if (split <= tiles && time(split) < time(best)) best = split;
  return best;
}

}  // namespace

void sum_frames(const FusedSizes& n, const GdnFusedInputs& in, const GdnFusedSaved& saved, float key_scale,
                float* a, float* b) {
  if (sums_frames_by_wgmma(n)) return sum_frames_wgmma(n, in, saved, key_scale, a, b);
  dispatch_head(n.d, [&]<int D>() {
    const auto sum = [&]<int kSplit>() {
      allow_shared(sum_frame_kernel<D, kSplit>, SumTraits<D>::kShared);
      launch({unsigned(n.cells() * kSplit), kSumThreads, SumTraits<D>::kShared}, sum_frame_kernel<D, kSplit>,
             n, FusedRows(in.k), FusedRows(in.v), pointer<float>(saved.beta), ChannelWeights(in.k_norm),
             pointer<float>(saved.r), pointer<uint32_t>(saved.angles), key_scale, pointer<half_t>(saved.p),
             pointer<float>(saved.p_z), a, b);
    };
    const int split = best_split(n.cells(), (n.s + kSumTokens - 1) / kSumTokens);
    if (split == 1) sum.template operator()<1>();
    if (split == 2) sum.template operator()<2>();
    if (split == 4) sum.template operator()<4>();
  });
}

}  // namespace rivulet::cuda
