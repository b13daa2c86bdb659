#include "ops/gdn_fused.cuh"

// Phase A: P, A, Pz and b of every frame. A write strength enters as its root on both sides of a product,
// which keeps P and Pz symmetric: half their blocks are computed.
namespace rivulet::cuda {
namespace {

constexpr int kSumThreads = 256, kSumTokens = 32, kRawStages = 2;

template <int D>
struct SumTraits {
  static constexpr int kBlocks = D / 16;  // 16 x 16 blocks along a side
  static constexpr int kHalf = (kBlocks + 1) / 2;
  static constexpr int kPieces = D / 8;  // 16-byte pieces of a token
  static constexpr int kTokensPerPass = kSumThreads / kPieces >= 32 ? 32 : kSumThreads / kPieces / 16 * 16;
  static constexpr int kPasses = kSumTokens / kTokensPerPass;
  static constexpr int kTile = kSumTokens * padded(D);  // elements of one operand's tile
  static constexpr int kRaw = kSumTokens * D;           // elements of one input's tile
  static constexpr size_t kShared = std::max<size_t>((2 * 3 * kTile + kRawStages * 3 * kRaw) * sizeof(half_t),
                                                     (D * D + kTokensPerPass * D) * sizeof(float));
};

// The blocks (i, i + shift) of X'X for shifts 2 kWhich and 2 kWhich + 1; the other half follows by symmetry.
template <int D, int kWhich, class F>
__device__ void for_symmetric_blocks(F&& f) {
  constexpr int kBlocks = D / 16;
#pragma unroll
  for (int i = 0; i < kBlocks; ++i)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int shift = 2 * kWhich + s;
      if (shift <= kBlocks / 2 && !(2 * shift == kBlocks && i >= kBlocks / 2) && !(shift > 0 && kBlocks == 1))
        f(2 * i + s, i, (i + shift) % kBlocks);
    }
}
__device__ inline void mma_block(float* acc, const Frag& a, const Frag& b) {
  mma(acc, a, b.r[0], b.r[2]);
  mma(acc + 4, a, b.r[1], b.r[3]);
}
template <int D, int kWhich>
__device__ void add_symmetric(float (&acc)[16][8], const half_t* x) {
#pragma unroll
  for (int k0 = 0; k0 < kSumTokens; k0 += 16) {
    Frag f[D / 16];
#pragma unroll
    for (int i = 0; i < D / 16; ++i) f[i] = tokens_frag<D>(x, k0, 16 * i);
    for_symmetric_blocks<D, kWhich>([&](int at, int i, int j) { mma_block(acc[at], f[i], f[j]); });
  }
}
// Quadrant (row, column) of V'K: at most kHalf x kHalf blocks.
template <int D>
__device__ void add_quadrant(float (&acc)[16][8], const half_t* v, const half_t* k, int row, int column) {
  constexpr int kBlocks = SumTraits<D>::kBlocks, kHalf = SumTraits<D>::kHalf;
#pragma unroll
  for (int k0 = 0; k0 < kSumTokens; k0 += 16) {
    Frag b[kHalf];
#pragma unroll
    for (int j = 0; j < kHalf; ++j)
      if (column * kHalf + j < kBlocks) b[j] = tokens_frag<D>(k, k0, 16 * (column * kHalf + j));
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      if (row * kHalf + i >= kBlocks) continue;
      const Frag a = tokens_frag<D>(v, k0, 16 * (row * kHalf + i));
#pragma unroll
      for (int j = 0; j < kHalf; ++j)
        if (column * kHalf + j < kBlocks) mma_block(acc[kHalf * i + j], a, b[j]);
    }
  }
}

// f(row, column, value) for a 16 x 16 block at (i0, j0).
template <class F>
__device__ void for_block(const float* acc, int i0, int j0, F&& f) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int e = 0; e < 8; ++e) f(i0 + lane / 4 + e % 4 / 2 * 8, j0 + e / 4 * 8 + lane % 4 * 2 + e % 2, acc[e]);
}

// A cluster of kSplit blocks per cell, each with its share of the frame's tokens; the partial sums meet in
// shared memory and are added in order. Warps 0, 1: Pz; 2, 3: P; 4 .. 7: A' [value, key].
template <int D, int kSplit>
__global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kSumThreads, 1)
    sum_frame_kernel(FusedSizes n, FusedRows k, FusedRows v, const float* beta, const float* norm,
                     const float* r, const uint32_t* angles, float key_scale, half_t* p, float* p_z, float* a,
                     float* b) {
  using Traits = SumTraits<D>;
  constexpr int kPieces = Traits::kPieces, kPasses = Traits::kPasses, kTile = Traits::kTile;
  extern __shared__ __align__(16) unsigned char shared[];
  half_t* tiles = reinterpret_cast<half_t*>(shared);
  const FusedCell cell(int(blockIdx.x) / kSplit, n);
  const int rank = int(blockIdx.x) % kSplit, warp = int(threadIdx.x) / 32;
  const int tile_count = (n.s + kSumTokens - 1) / kSumTokens, begin = tile_count * rank / kSplit,
            end = tile_count * (rank + 1) / kSplit;
  const int my_token = int(threadIdx.x) / kPieces, piece = int(threadIdx.x) % kPieces;
  const bool loads = my_token < Traits::kTokensPerPass;

  float weight[8], b_sum[8] = {}, acc[16][8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) weight[i] = norm[cell.h * D + 8 * piece + i];
  // A thread copies 16-byte pieces of k, v and the angles for itself, kRawStages tiles ahead of their use; a
  // token's scale and strength come one tile ahead.
  half_t* raw = tiles + 2 * 3 * kTile + 8 * int(threadIdx.x);
  float next_r[kPasses], next_beta[kPasses];
  const auto token_of = [&](int tile, int pass) {
    return tile * kSumTokens + pass * Traits::kTokensPerPass + my_token;
  };
  const auto copy = [&](int tile) {
    half_t* to = raw + (tile - begin) % kRawStages * 3 * Traits::kRaw;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass, to += Traits::kTokensPerPass * D) {
      const int token = token_of(tile, pass), at = min(token, n.s - 1);
      if (!loads || tile >= end) continue;
      copy_16_bytes_async(to, k.at(cell, D, at) + 8 * piece, token < n.s);
      copy_16_bytes_async(to + Traits::kRaw, v.at(cell, D, at) + 8 * piece, token < n.s);
      copy_16_bytes_async(to + 2 * Traits::kRaw, angles + int64_t(cell.place(n) + at) * (D / 2) + 4 * piece);
    }
    commit_copies();
  };
  const auto fetch = [&](int tile) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = token_of(tile, pass);
      const bool valid = loads && tile < end && token < n.s;
      next_r[pass] = valid ? r[n.tokens() + cell.token(n) + token] : 0;
      next_beta[pass] = valid ? beta[int64_t(cell.token(n) + token) * n.h + cell.h] : 0;
    }
  };
  // Makes the operands of a tile.
  const auto put = [&](int tile) {
    wait_copies<kRawStages - 1>();
    if (!loads) return;
    half_t* at = tiles + (tile - begin) % 2 * 3 * kTile + my_token * padded(D) + 8 * piece;
    const half_t* from = raw + (tile - begin) % kRawStages * 3 * Traits::kRaw;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const Pack<uint32_t, 4> kw = load_pack<uint32_t>(reinterpret_cast<const uint32_t*>(from)),
                              vw =
                                  load_pack<uint32_t>(reinterpret_cast<const uint32_t*>(from + Traits::kRaw)),
                              aw = load_pack<uint32_t>(
                                  reinterpret_cast<const uint32_t*>(from + 2 * Traits::kRaw));
      const float root = sqrtf(next_beta[pass]), scale = next_r[pass] * key_scale * root;
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
      store_pack(reinterpret_cast<uint32_t*>(at), plain);
      store_pack(reinterpret_cast<uint32_t*>(at + kTile), turned);
      store_pack(reinterpret_cast<uint32_t*>(at + 2 * kTile), values);
      at += Traits::kTokensPerPass * padded(D);
      from += Traits::kTokensPerPass * D;
    }
  };

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
    const half_t* features = x + (warp < 2 ? 0 : kTile);
    if (warp >= 4)
      add_quadrant<D>(acc, x + 2 * kTile, x + kTile, (warp - 4) / 2, warp % 2);
    else if (warp % 2 == 0)
      add_symmetric<D, 0>(acc, features);
    else
      add_symmetric<D, 1>(acc, features);
    __syncthreads();
  }

  const auto cluster = cooperative_groups::this_cluster();
  float* sums = reinterpret_cast<float*>(shared);  // one D x D matrix at a time, then the parts of b
  float* parts = sums + D * D;
  if (loads)
#pragma unroll
    for (int i = 0; i < 8; ++i) parts[my_token * D + 8 * piece + i] = b_sum[i];
#pragma unroll 1
  for (int what = 0; what < 3; ++what) {
    if (what < 2 && warp / 2 == what) {
      const auto write = [&](int at, int i, int j) {
        for_block(acc[at], 16 * i, 16 * j, [&](int row, int column, float x) {
          sums[row * D + column] = x;
          if (i != j) sums[column * D + row] = x;
        });
      };
      if (warp % 2 == 0)
        for_symmetric_blocks<D, 0>(write);
      else
        for_symmetric_blocks<D, 1>(write);
    } else if (what == 2 && warp >= 4) {
      constexpr int kHalf = Traits::kHalf;
      const int i0 = (warp - 4) / 2 * kHalf, j0 = warp % 2 * kHalf;
#pragma unroll
      for (int i = 0; i < kHalf; ++i)
#pragma unroll
        for (int j = 0; j < kHalf; ++j)
          if (i0 + i < Traits::kBlocks && j0 + j < Traits::kBlocks)
            for_block(acc[kHalf * i + j], 16 * (i0 + i), 16 * (j0 + j),
                      [&](int row, int column, float x) { sums[row * D + column] = x; });
    }
    cluster.sync();
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
        for (int i = 0; i < Traits::kTokensPerPass; ++i) total += from[i * D];
      }
      b[cell.index * D + int(threadIdx.x)] = total;
    }
    cluster.sync();
  }
}

// Into how many blocks a cell's tokens go so that the GPU's processors share the work best. A block's start
// and end take about as long as kEdge tiles.
int best_split(int cells, int tiles) {
  constexpr double kEdge = 6;
  int device = 0, processors = 0, best = 1;
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const auto time = [&](int split) {
    return (cells * split + processors - 1) / processors * (double(tiles) / split + kEdge);
  };
  for (const int split : {2, 4})
    if (split <= tiles && time(split) < time(best)) best = split;
  return best;
}

}  // namespace

void sum_frames(const FusedSizes& n, const GdnFusedInputs& in, const GdnFusedSaved& saved, float key_scale,
                float* a, float* b) {
  dispatch_head(n.d, [&]<int D>() {
    const auto sum = [&]<int kSplit>() {
      allow_shared(sum_frame_kernel<D, kSplit>, SumTraits<D>::kShared);
      launch({unsigned(n.cells() * kSplit), kSumThreads, SumTraits<D>::kShared}, sum_frame_kernel<D, kSplit>,
             n, FusedRows(in.k), FusedRows(in.v), pointer<float>(saved.beta), pointer<float>(in.k_norm),
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
