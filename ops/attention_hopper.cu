// bf16 attention for Hopper. A block is a warpgroup that copies and two that compute, 64 queries each. A
// warpgroup has its softmax while the tensor cores multiply its weights before by their values, or work for
// the other one. Queries, keys and values come by TMA; scores, weights and sums stay in registers.
#include "ops/attention_bf16.cuh"
#include "ops/wgmma.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kTileQueries = 128, kStages = 2, kBlock = 384;

// How the tiles of queries are shared out. Each block has `whole` tiles for itself; the rest, too few to
// fill all blocks, are cut along the keys, and their parts put together by combine_kernel.
struct Division {
  int blocks, tiles, key_tiles, whole, rest, cutters;  // cutters: the blocks that share the rest

  Division(int tiles, int key_tiles, int processors, bool cut) : tiles(tiles), key_tiles(key_tiles) {
    constexpr int64_t kLeast = 4;  // key tiles of a part, so that its own start and end stay small
    blocks = cut ? std::min(processors, tiles) : tiles;
    whole = tiles / blocks;
    if (cut && tiles <= processors) {  // cutting may occupy more blocks than there are tiles
      whole = 0;
      blocks = processors;
    }
    rest = tiles - whole * blocks;
    cutters = int(std::clamp<int64_t>(rest * int64_t(key_tiles) / kLeast, rest, blocks));
    if (whole == 0) blocks = cutters;
  }
  // First unit (key tile of a tile of the rest) of block c.
  __host__ __device__ int begin(int c) const { return int(int64_t(c) * rest * key_tiles / cutters); }
};

struct ForwardArguments {
  CUtensorMap q, k[kMaxSegments], v[kMaxSegments];
  KeyTiles keys;
  Division division;
  int queries, query_tiles, heads, d;
  float scale2;
  const uint8_t* mask;
  __nv_bfloat16* out;
  float *lse, *part_out, *part_lse;  // parts: [slot, query, d] and [slot, query]
};

template <int kWidth, int kKeys>
struct ForwardShared {
  alignas(1024) unsigned char q[panels_of(kWidth) * panel_bytes(kTileQueries)];
  unsigned char k[kStages][panels_of(kWidth) * panel_bytes(kKeys)];
  unsigned char v[kStages][panels_of(kWidth) * panel_bytes(kKeys)];
  uint64_t q_full, q_empty, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};

#ifdef RIVULET_SM90A

constexpr int kComputeWarps = 8;

// Key tiles [first, last) of one tile of queries. slot: where a part's result goes, -1 for a whole tile.
struct Piece {
  int tile, first, last, slot;
};

// Piece i of this block; false after the last. A block's share of the rest lies in at most two tiles.
__device__ bool piece_of(const Division& d, int i, Piece& piece) {
  const int c = int(blockIdx.x);
  if (i < d.whole) {
    piece = {c + i * d.blocks, 0, d.key_tiles, -1};
    return true;
  }
  i -= d.whole;
  if (d.rest == 0 || c >= d.cutters || i > 1) return false;
  const int begin = d.begin(c), end = d.begin(c + 1), tile = begin / d.key_tiles + i;
  const int first = max(begin, tile * d.key_tiles), last = min(end, (tile + 1) * d.key_tiles);
  if (first >= last) return false;
  piece = {d.whole * d.blocks + tile, first - tile * d.key_tiles, last - tile * d.key_tiles, 2 * c + i};
  if (last - first == d.key_tiles) piece.slot = -1;
  return true;
}

template <int kWidth, int kKeys>
__device__ void forward_copies(const ForwardArguments& x, ForwardShared<kWidth, kKeys>& s, int tiles_limit) {
  constexpr int kQueryBytes = sizeof(s.q), kKeyBytes = sizeof(s.k[0]);
  Ring<kStages> ring;
  Piece piece;
  for (int i = 0; piece_of(x.division, i, piece); ++i) {
    const int bh = piece.tile / x.query_tiles, b = bh / x.heads, h = bh % x.heads;
    barrier_wait(&s.q_empty, (i + 1) & 1);
    barrier_expect(&s.q_full, kQueryBytes);
    load_tile<kTileQueries, kWidth>(&x.q, &s.q_full, s.q, h, piece.tile % x.query_tiles * kTileQueries, b);
    for (int tile = piece.first; tile < min(piece.last, tiles_limit); ++tile, ring.next()) {
      const int segment = x.keys.segment_of_tile(tile), row = (tile - x.keys.tiles_before[segment]) * kKeys;
      barrier_wait(&s.k_empty[ring.stage], ring.parity ^ 1);
      barrier_expect(&s.k_full[ring.stage], kKeyBytes);
      load_tile<kKeys, kWidth>(&x.k[segment], &s.k_full[ring.stage], s.k[ring.stage], h, row, b);
      barrier_wait(&s.v_empty[ring.stage], ring.parity ^ 1);
      barrier_expect(&s.v_full[ring.stage], kKeyBytes);
      load_tile<kKeys, kWidth>(&x.v[segment], &s.v_full[ring.stage], s.v[ring.stage], h, row, b);
    }
  }
}

// Writes the output rows of one piece, or the part of them.
template <int kWidth, int kOut>
__device__ void forward_results(const ForwardArguments& x, const Piece& piece, int group,
                                const float (&o)[kOut / 2], const OnlineSoftmax& softmax) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
  const int bh = piece.tile / x.query_tiles, b = bh / x.heads, h = bh % x.heads;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = group * 64 + warp * 16 + lane / 4 + 8 * r;
    const int query = piece.tile % x.query_tiles * kTileQueries + row;
    const float sum = quad_sum(softmax.sum[r]), inverse = sum == 0 ? 0.f : 1 / sum;
    if (query >= x.queries) continue;
    const float lse = softmax.top[r] * x.scale2 + __log2f(sum);
    if (piece.slot >= 0) {
      const int64_t at = int64_t(piece.slot) * kTileQueries + row;
      if (lane % 4 == 0) x.part_lse[at] = sum == 0 ? -INFINITY : lse;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j)
        if (8 * j < x.d)
          *reinterpret_cast<float2*>(x.part_out + at * x.d + 8 * j + lane % 4 * 2) =
              make_float2(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse);
    } else {
      if (lane % 4 == 0) x.lse[int64_t(bh) * x.queries + query] = sum == 0 ? INFINITY : lse;
      __nv_bfloat16* to = x.out + ((int64_t(b) * x.queries + query) * x.heads + h) * x.d + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j)
        if (8 * j < x.d)
          *reinterpret_cast<__nv_bfloat162*>(to + 8 * j) =
              __floats2bfloat162_rn(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse);
    }
  }
}

template <int kWidth, int kOut, int kKeys, bool kMasked>
__device__ void forward_products(const ForwardArguments& x, ForwardShared<kWidth, kKeys>& s, int tiles_limit,
                                 int group) {
  using Scores = Wgmma<kKeys>;
  using Output = Wgmma<kOut>;
  const int lane = int(threadIdx.x) % 32;
  const uint64_t q = rows_operand(s.q + group * panel_bytes(64));
  const uint64_t k = rows_operand(s.k[0]), v = columns_operand(s.v[0], kKeys);
  constexpr int kStep = int(sizeof(s.k[0])) >> 4;  // from stage to stage of a descriptor
  const auto multiply_keys = [&](const Ring<kStages>& at, float(&scores)[kKeys / 2]) {
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < kWidth; c += 16)
      Scores::template run<0>(scores, q + rows_operand_step(kTileQueries, c),
                              k + uint32_t(at.stage * kStep) + rows_operand_step(kKeys, c), c > 0);
    wgmma_commit();
  };
  const auto multiply_values = [&](const Ring<kStages>& at, const uint32_t(&p)[kKeys / 4],
                                   float(&o)[kOut / 2], bool add) {
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < kKeys; c += 16)
      Output::template run<1>(o, p + c / 4, v + uint32_t(at.stage * kStep) + columns_operand_step(c),
                              c > 0 || add);
    wgmma_commit();
  };
  const auto release = [&](uint64_t* barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };
  Ring<kStages> ring;
  Piece piece;
  for (int i = 0; piece_of(x.division, i, piece); ++i) {
    const int b = piece.tile / x.query_tiles / x.heads, last = min(piece.last, tiles_limit);
    const uint8_t* mask = kMasked ? x.mask + int64_t(b) * x.keys.keys : nullptr;
    OnlineSoftmax softmax;
    float o[kOut / 2], scores[kKeys / 2], shrink[2];
    uint32_t p[kKeys / 4];
    barrier_wait(&s.q_full, i & 1);
    barrier_wait(&s.k_full[ring.stage], ring.parity);
    multiply_keys(ring, scores);
    wgmma_wait<0>();
    pin(scores);
    release(&s.k_empty[ring.stage]);
    mask_scores<kKeys, kMasked>(x.keys, mask, piece.first, scores);
    softmax.weigh(scores, x.scale2, shrink);
    to_operand(scores, p);
    for (int tile = piece.first + 1; tile < last; ++tile) {
      const Ring<kStages> before = ring;
      ring.next();
      barrier_wait(&s.k_full[ring.stage], ring.parity);
      multiply_keys(ring, scores);
      barrier_wait(&s.v_full[before.stage], before.parity);
      multiply_values(before, p, o, tile > piece.first + 1);
      wgmma_wait<1>();
      pin(scores);
      release(&s.k_empty[ring.stage]);
      mask_scores<kKeys, kMasked>(x.keys, mask, tile, scores);
      softmax.weigh(scores, x.scale2, shrink);
      wgmma_wait<0>();
      pin(o);
      pin(p);
      release(&s.v_empty[before.stage]);
#pragma unroll
      for (int j = 0; j < kOut / 2; ++j) o[j] *= shrink[j / 2 % 2];
      to_operand(scores, p);
    }
    release(&s.q_empty);
    barrier_wait(&s.v_full[ring.stage], ring.parity);
    multiply_values(ring, p, o, last > piece.first + 1);
    wgmma_wait<0>();
    pin(o);
    release(&s.v_empty[ring.stage]);
    ring.next();
    forward_results<kWidth, kOut>(x, piece, group, o, softmax);
  }
}

#endif  // RIVULET_SM90A

template <int kWidth, int kOut, int kKeys, bool kMasked>
__global__ void __launch_bounds__(kBlock, 1) forward_kernel(const __grid_constant__ ForwardArguments x) {
#ifdef RIVULET_SM90A
  extern __shared__ unsigned char raw[];
  auto& s = *reinterpret_cast<ForwardShared<kWidth, kKeys>*>((reinterpret_cast<uintptr_t>(raw) + 1023) /
                                                             1024 * 1024);
  int tiles_limit = x.keys.tiles;
  // A block of a masked launch has one tile of queries.
  if constexpr (kMasked) {
    const int b = int(blockIdx.x) / x.query_tiles / x.heads;
    tiles_limit = tiles_that_count(x.keys, x.mask + int64_t(b) * x.keys.keys, kKeys);
  }
  if (threadIdx.x == 0) {
    barrier_init(&s.q_full, 1);
    barrier_init(&s.q_empty, kComputeWarps);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.k_full[i], 1);
      barrier_init(&s.v_full[i], 1);
      barrier_init(&s.k_empty[i], kComputeWarps);
      barrier_init(&s.v_empty[i], kComputeWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_down<24>();
    if (threadIdx.x == 0) forward_copies(x, s, tiles_limit);
  } else {
    registers_up<240>();
    forward_products<kWidth, kOut, kKeys, kMasked>(x, s, tiles_limit, int(threadIdx.x) / 128 - 1);
  }
#endif
}

// Puts the parts of tiles together: out = sum_i 2^(lse_i - lse) out_i. A warp per query.
__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ ForwardArguments x) {
  const Division& d = x.division;
  const int tile = int(blockIdx.x), row = int(blockIdx.y) * (kThreads / 32) + int(threadIdx.x) / 32;
  const int lane = int(threadIdx.x) % 32, begin = tile * d.key_tiles, end = begin + d.key_tiles;
  int first = int(int64_t(begin) * d.cutters / (d.rest * d.key_tiles));
  while (first > 0 && d.begin(first) > begin) --first;
  while (d.begin(first + 1) <= begin) ++first;
  if (d.begin(first) <= begin && d.begin(first + 1) >= end) return;  // one block had all of it
  const int whole_tile = d.whole * d.blocks + tile, bh = whole_tile / x.query_tiles;
  const int query = whole_tile % x.query_tiles * kTileQueries + row;
  if (query >= x.queries) return;
  const auto slot = [&](int c) { return 2 * c + (d.begin(c) < begin ? 1 : 0); };
  float top = -INFINITY;
  for (int c = first; c < d.cutters && d.begin(c) < end; ++c)
    top = fmaxf(top, x.part_lse[int64_t(slot(c)) * kTileQueries + row]);
  float sum = 0, o[4] = {};
  for (int c = first; c < d.cutters && d.begin(c) < end; ++c) {
    const int64_t at = int64_t(slot(c)) * kTileQueries + row;
    const float weight = fast_exp2(x.part_lse[at] - top);
    sum += weight;
    if (4 * lane < x.d) {
      const auto part = load_pack<float, 4>(x.part_out + at * x.d + 4 * lane);
#pragma unroll
      for (int e = 0; e < 4; ++e) o[e] += weight * part.v[e];
    }
  }
  if (lane == 0) x.lse[int64_t(bh) * x.queries + query] = top + __log2f(sum);
  if (4 * lane >= x.d) return;
  Pack<__nv_bfloat16, 4> to;
#pragma unroll
  for (int e = 0; e < 4; ++e) to.v[e] = __float2bfloat16(o[e] / sum);
  store_pack(x.out + ((int64_t(bh / x.heads) * x.queries + query) * x.heads + bh % x.heads) * x.d + 4 * lane,
             to);
}

int processors() {
  int device = 0, count = 0;
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

template <int kWidth, int kOut, int kKeys>
void forward(const ForwardInput& in, const Tensor& out, const Tensor& lse) {
  const int64_t batch = in.q.dim(0), queries = in.q.dim(1), heads = in.q.dim(2), d = in.q.dim(3);
  const int query_tiles = int(blocks_for(queries, kTileQueries));
  const KeyTiles keys(in.k, kKeys);
  const bool masked = in.mask.defined();
  const Division division(int(batch * heads) * query_tiles, keys.tiles, processors(), !masked);
  ForwardArguments x{.q = head_rows_map(in.q, kTileQueries),
                     .k = {},
                     .v = {},
                     .keys = keys,
                     .division = division,
                     .queries = int(queries),
                     .query_tiles = query_tiles,
                     .heads = int(heads),
                     .d = int(d),
                     .scale2 = in.scale * kLog2Ef,
                     .mask = pointer<uint8_t>(in.mask),
                     .out = pointer<__nv_bfloat16>(out),
                     .lse = lse.data<float>(),
                     .part_out = nullptr,
                     .part_lse = nullptr};
  for (size_t i = 0; i < in.k.size(); ++i) {
    x.k[i] = head_rows_map(in.k[i], kKeys);
    x.v[i] = head_rows_map(in.v[i], kKeys);
  }
  Tensor part_out, part_lse;
  const bool parts = division.rest > 0 && division.cutters > division.rest;
  if (parts) {
    part_out = Tensor({2 * division.cutters, kTileQueries, d}, DType::f32, Device::cuda);
    part_lse = Tensor({2 * division.cutters, kTileQueries}, DType::f32, Device::cuda);
    x.part_out = part_out.data<float>();
    x.part_lse = part_lse.data<float>();
  }
  const auto kernel =
      masked ? forward_kernel<kWidth, kOut, kKeys, true> : forward_kernel<kWidth, kOut, kKeys, false>;
  const size_t bytes = sizeof(ForwardShared<kWidth, kKeys>) + 1024;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  launch({dim3(division.blocks), kBlock, bytes}, kernel, x);
  if (parts) launch({dim3(division.rest, kTileQueries / (kThreads / 32)), kThreads}, combine_kernel, x);
}

}  // namespace

void attention_wgmma(const ForwardInput& in, const Tensor& out, const Tensor& lse) {
  const int64_t d = in.q.dim(3);
  int64_t keys = 0;
  for (const Tensor& k : in.k) keys += k.dim(1);
  if (d <= 64)
    forward<64, 64, 176>(in, out, lse);
  else if (d <= 112 && keys <= 64)  // of a short text: most of a larger tile would be empty
    forward<112, 112, 64>(in, out, lse);
  else if (d <= 112)
    forward<112, 112, 176>(in, out, lse);
  else
    forward<128, 128, 176>(in, out, lse);
}

}  // namespace rivulet::cuda
