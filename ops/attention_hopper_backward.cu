// Gradients of bf16 attention for Hopper, in two kernels of the same build as the forward one: dq by tiles of
// queries, dk and dv by tiles of keys. Both compute the scores again, so that all sums stay in registers and
// none depends on the order of blocks.
#include "ops/attention_bf16.cuh"
#include "ops/wgmma.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kRows = 128, kStages = 3, kBlock = 384;

struct BackwardArguments {
  CUtensorMap q, dout, k[kMaxSegments], v[kMaxSegments];
  KeyTiles keys;
  int queries, heads, d, stat_rows;
  float scale;
  const uint8_t* mask;
  const float2* stats;
  __nv_bfloat16 *dq, *dk[kMaxSegments], *dv[kMaxSegments];
};

// Two tiles that stay, a ring of pairs of tiles that pass by, and the stats of passing queries.
template <int kWidth, int kPassing>
struct BackwardShared {
  static constexpr int kTile = panels_of(kWidth) * panel_bytes(kPassing);
  alignas(1024) unsigned char own[2][panels_of(kWidth) * panel_bytes(kRows)];
  unsigned char passing[kStages][2][kTile];
  alignas(16) float2 stats[kStages][kPassing];
  uint64_t own_full, full[kStages], empty[kStages];
};

#ifdef RIVULET_SM90A

constexpr int kComputeWarps = 8;
constexpr int kTurn = 1;  // named barriers kTurn + warpgroup: turns on the tensor cores

template <class Shared>
__device__ void start_barriers(Shared& s) {
  if (threadIdx.x == 0) {
    barrier_init(&s.own_full, 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], kComputeWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
}

template <class Shared>
__device__ Shared& shared_memory(unsigned char* raw) {
  return *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
}

// d = a b' of tiles in shared memory, the first operand 64 of kRows rows.
template <int kWidth, int kPassing>
__device__ void multiply_rows(uint64_t a, uint64_t b, float (&d)[kPassing / 2]) {
#pragma unroll
  for (int c = 0; c < kWidth; c += 16)
    Wgmma<kPassing>::template run<0>(d, a + rows_operand_step(kRows, c), b + rows_operand_step(kPassing, c),
                                     c > 0);
}
// d (+)= p b
template <int kWidth, int kPassing>
__device__ void multiply_columns(const uint32_t (&p)[kPassing / 4], uint64_t b, float (&d)[kWidth / 2],
                                 bool add) {
#pragma unroll
  for (int c = 0; c < kPassing; c += 16)
    Wgmma<kWidth>::template run<1>(d, p + c / 4, b + columns_operand_step(c), c > 0 || add);
}

// This thread's two rows of a result [rows, kWidth], times factor.
template <int kWidth>
__device__ void store_rows(const float (&o)[kWidth / 2], float factor, __nv_bfloat16* to, int64_t stride,
                           int first, int rows, int d) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + lane / 4 + 8 * r;
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j)
      if (8 * j < d)
        *reinterpret_cast<__nv_bfloat162*>(to + row * stride + 8 * j + lane % 4 * 2) =
            __floats2bfloat162_rn(o[4 * j + 2 * r] * factor, o[4 * j + 2 * r + 1] * factor);
  }
}

template <int kWidth, int kKeys, bool kMasked>
__device__ void query_grad_products(const BackwardArguments& x, BackwardShared<kWidth, kKeys>& s, int tiles,
                                    int b, int h, int q0, int group) {
  constexpr int kTile = BackwardShared<kWidth, kKeys>::kTile, kStep = 2 * kTile >> 4;
  const int lane = int(threadIdx.x) % 32, first_row = q0 + group * 64 + int(threadIdx.x) / 32 % 4 * 16;
  const uint8_t* mask = kMasked ? x.mask + int64_t(b) * x.keys.keys : nullptr;
  const uint64_t q = rows_operand(s.own[0] + group * panel_bytes(64)),
                 dout = rows_operand(s.own[1] + group * panel_bytes(64)), k = rows_operand(s.passing[0][0]),
                 v = rows_operand(s.passing[0][1]), k_columns = columns_operand(s.passing[0][0], kKeys);
  const float2* stats = x.stats + (int64_t(b) * x.heads + h) * x.stat_rows + first_row + lane / 4;
  const float2 stat[2] = {stats[0], stats[8]};
  const float scale2 = x.scale * kLog2Ef;
  float sum[kWidth / 2], p[kKeys / 2], dp[kKeys / 2];
  uint32_t ds[kKeys / 4];
  // Scores and their gradients of one tile, begun; the stage must be full.
  const auto begin = [&](const Ring<kStages>& at) {
    wgmma_fence();
    multiply_rows<kWidth, kKeys>(q, k + uint32_t(at.stage * kStep), p);
    multiply_rows<kWidth, kKeys>(dout, v + uint32_t(at.stage * kStep), dp);
    wgmma_commit();
  };
  const auto grade = [&](int tile) {
    pin(p);
    pin(dp);
    mask_scores<kKeys, kMasked>(x.keys, mask, tile, p);
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const float2 row = stat[i / 2 % 2];
      dp[i] = fast_exp2(p[i] * scale2 - row.x) * (dp[i] - row.y);
    }
  };
  const auto add_keys = [&](const Ring<kStages>& at, bool add) {
    wgmma_fence();
    multiply_columns<kWidth, kKeys>(ds, k_columns + uint32_t(at.stage * kStep), sum, add);
    wgmma_commit();
  };
  if (group == 1) named_arrive(kTurn, 256);
  Ring<kStages> ring;
  barrier_wait(&s.own_full, 0);
  barrier_wait(&s.full[0], 0);
  named_sync(kTurn + group, 256);
  begin(ring);
  named_arrive(kTurn + (group ^ 1), 256);
  wgmma_wait<0>();
  grade(0);
  to_operand(dp, ds);
  for (int tile = 1; tile < tiles; ++tile) {
    const Ring<kStages> before = ring;
    ring.next();
    barrier_wait(&s.full[ring.stage], ring.parity);
    named_sync(kTurn + group, 256);
    begin(ring);
    add_keys(before, tile > 1);
    named_arrive(kTurn + (group ^ 1), 256);
    wgmma_wait<1>();
    grade(tile);
    wgmma_wait<0>();
    pin(sum);
    pin(ds);
    if (lane == 0) barrier_arrive(&s.empty[before.stage]);
    to_operand(dp, ds);
  }
  add_keys(ring, tiles > 1);
  wgmma_wait<0>();
  pin(sum);
  if (group == 0) named_sync(kTurn, 256);  // takes the last turn, which nobody else would
  store_rows<kWidth>(sum, x.scale, x.dq + (int64_t(b) * x.queries * x.heads + h) * x.d,
                     int64_t(x.heads) * x.d, first_row, x.queries, x.d);
}

template <int kWidth, int kQueries, bool kMasked, bool kOverlap>
__device__ void key_grad_products(const BackwardArguments& x, BackwardShared<kWidth, kQueries>& s, int tiles,
                                  int b, int h, int segment, int k0, int group) {
  constexpr int kTile = BackwardShared<kWidth, kQueries>::kTile, kStep = 2 * kTile >> 4;
  const int lane = int(threadIdx.x) % 32, first_row = k0 + group * 64 + int(threadIdx.x) / 32 % 4 * 16;
  const int rows = x.keys.rows[segment];
  const uint64_t k = rows_operand(s.own[0] + group * panel_bytes(64)),
                 v = rows_operand(s.own[1] + group * panel_bytes(64)), q = rows_operand(s.passing[0][0]),
                 dout = rows_operand(s.passing[0][1]), q_columns = columns_operand(s.passing[0][0], kQueries),
                 dout_columns = columns_operand(s.passing[0][1], kQueries);
  const float scale2 = x.scale * kLog2Ef;
  float bias[2] = {0, 0};  // -inf for a key that does not count
  if constexpr (kMasked)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + lane / 4 + 8 * r;
      if (row >= rows || x.mask[int64_t(b) * x.keys.keys + x.keys.keys_before[segment] + row] == 0)
        bias[r] = -INFINITY;
    }
  float dk[kWidth / 2], dv[kWidth / 2], p[kQueries / 2], dp[kQueries / 2];
  uint32_t p16[kQueries / 4], ds16[kQueries / 4];
  const auto begin = [&](const Ring<kStages>& at) {
    wgmma_fence();
    multiply_rows<kWidth, kQueries>(k, q + uint32_t(at.stage * kStep), p);
    multiply_rows<kWidth, kQueries>(v, dout + uint32_t(at.stage * kStep), dp);
    wgmma_commit();
  };
  const auto grade = [&](const Ring<kStages>& at) {
    pin(p);
    pin(dp);
    const float2* stats = s.stats[at.stage] + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      const float4 two = *reinterpret_cast<const float4*>(stats + 8 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float lse = e % 2 == 0 ? two.x : two.z, delta = e % 2 == 0 ? two.y : two.w;
        float& weight = p[4 * j + e];
        weight = fast_exp2(weight * scale2 - lse + (kMasked ? bias[e / 2] : 0.f));
        dp[4 * j + e] = weight * (dp[4 * j + e] - delta);
      }
    }
  };
  const auto add_queries = [&](const Ring<kStages>& at, bool add) {
    wgmma_fence();
    multiply_columns<kWidth, kQueries>(p16, dout_columns + uint32_t(at.stage * kStep), dv, add);
    multiply_columns<kWidth, kQueries>(ds16, q_columns + uint32_t(at.stage * kStep), dk, add);
    wgmma_commit();
  };
  Ring<kStages> ring;
  barrier_wait(&s.own_full, 0);
  if constexpr (!kOverlap) {
    for (int tile = 0; tile < tiles; ++tile, ring.next()) {
      barrier_wait(&s.full[ring.stage], ring.parity);
      begin(ring);
      wgmma_wait<0>();
      grade(ring);
      to_operand(p, p16);
      to_operand(dp, ds16);
      add_queries(ring, tile > 0);
      wgmma_wait<0>();
      pin(dk);
      pin(dv);
      if (lane == 0) barrier_arrive(&s.empty[ring.stage]);
    }
  } else {
    if (group == 1) named_arrive(kTurn, 256);
    barrier_wait(&s.full[0], 0);
    named_sync(kTurn + group, 256);
    begin(ring);
    named_arrive(kTurn + (group ^ 1), 256);
    wgmma_wait<0>();
    grade(ring);
    to_operand(p, p16);
    to_operand(dp, ds16);
    for (int tile = 1; tile < tiles; ++tile) {
      const Ring<kStages> before = ring;
      ring.next();
      barrier_wait(&s.full[ring.stage], ring.parity);
      named_sync(kTurn + group, 256);
      begin(ring);
      add_queries(before, tile > 1);
      named_arrive(kTurn + (group ^ 1), 256);
      wgmma_wait<1>();
      grade(ring);
      wgmma_wait<0>();
      pin(dk);
      pin(dv);
      pin(p16);
      pin(ds16);
      if (lane == 0) barrier_arrive(&s.empty[before.stage]);
      to_operand(p, p16);
      to_operand(dp, ds16);
    }
    add_queries(ring, tiles > 1);
    wgmma_wait<0>();
    pin(dk);
    pin(dv);
    if (group == 0) named_sync(kTurn, 256);
  }
  const int64_t at = (int64_t(b) * rows * x.heads + h) * x.d, stride = int64_t(x.heads) * x.d;
  store_rows<kWidth>(dk, x.scale, x.dk[segment] + at, stride, first_row, rows, x.d);
  store_rows<kWidth>(dv, 1.f, x.dv[segment] + at, stride, first_row, rows, x.d);
}

#endif  // RIVULET_SM90A

template <int kWidth, int kKeys, bool kMasked>
__global__ void __launch_bounds__(kBlock, 1) query_grad_kernel(const __grid_constant__ BackwardArguments x) {
#ifdef RIVULET_SM90A
  extern __shared__ unsigned char raw[];
  auto& s = shared_memory<BackwardShared<kWidth, kKeys>>(raw);
  const int q0 = int(blockIdx.x) * kRows, h = int(blockIdx.y), b = int(blockIdx.z);
  int tiles = x.keys.tiles;
  if constexpr (kMasked) tiles = tiles_that_count(x.keys, x.mask + int64_t(b) * x.keys.keys, kKeys);
  start_barriers(s);
  if (threadIdx.x < 128) {
    registers_down<24>();
    if (threadIdx.x > 0) return;
    barrier_expect(&s.own_full, int(sizeof(s.own)));
    load_tile<kRows, kWidth>(&x.q, &s.own_full, s.own[0], h, q0, b);
    load_tile<kRows, kWidth>(&x.dout, &s.own_full, s.own[1], h, q0, b);
    Ring<kStages> ring;
    for (int tile = 0; tile < tiles; ++tile, ring.next()) {
      const int segment = x.keys.segment_of_tile(tile), row = (tile - x.keys.tiles_before[segment]) * kKeys;
      uint64_t* full = &s.full[ring.stage];
      barrier_wait(&s.empty[ring.stage], ring.parity ^ 1);
      barrier_expect(full, int(sizeof(s.passing[0])));
      load_tile<kKeys, kWidth>(&x.k[segment], full, s.passing[ring.stage][0], h, row, b);
      load_tile<kKeys, kWidth>(&x.v[segment], full, s.passing[ring.stage][1], h, row, b);
    }
  } else {
    registers_up<240>();
    query_grad_products<kWidth, kKeys, kMasked>(x, s, tiles, b, h, q0, int(threadIdx.x) / 128 - 1);
  }
#endif
}

template <int kWidth, int kQueries, bool kMasked, bool kOverlap>
__global__ void __launch_bounds__(kBlock, 1) key_grad_kernel(const __grid_constant__ BackwardArguments x) {
#ifdef RIVULET_SM90A
  extern __shared__ unsigned char raw[];
  auto& s = shared_memory<BackwardShared<kWidth, kQueries>>(raw);
  const int h = int(blockIdx.y), b = int(blockIdx.z), segment = x.keys.segment_of_tile(int(blockIdx.x));
  const int k0 = (int(blockIdx.x) - x.keys.tiles_before[segment]) * kRows;
  int tiles = (x.queries + kQueries - 1) / kQueries;
  if constexpr (kMasked) {
    // Keys that nothing attends to: one tile of queries is enough to find their zeros.
    const int key = k0 + int(threadIdx.x);
    const bool counts = threadIdx.x < kRows && key < x.keys.rows[segment] &&
                        x.mask[int64_t(b) * x.keys.keys + x.keys.keys_before[segment] + key] != 0;
    if (!__syncthreads_or(counts)) tiles = 1;
  }
  start_barriers(s);
  if (threadIdx.x < 128) {
    registers_down<24>();
    if (threadIdx.x > 0) return;
    barrier_expect(&s.own_full, int(sizeof(s.own)));
    load_tile<kRows, kWidth>(&x.k[segment], &s.own_full, s.own[0], h, k0, b);
    load_tile<kRows, kWidth>(&x.v[segment], &s.own_full, s.own[1], h, k0, b);
    const float2* stats = x.stats + (int64_t(b) * x.heads + h) * x.stat_rows;
    Ring<kStages> ring;
    for (int tile = 0; tile < tiles; ++tile, ring.next()) {
      uint64_t* full = &s.full[ring.stage];
      barrier_wait(&s.empty[ring.stage], ring.parity ^ 1);
      barrier_expect(full, int(sizeof(s.passing[0]) + sizeof(s.stats[0])));
      load_tile<kQueries, kWidth>(&x.q, full, s.passing[ring.stage][0], h, tile * kQueries, b);
      load_tile<kQueries, kWidth>(&x.dout, full, s.passing[ring.stage][1], h, tile * kQueries, b);
      load_bytes(stats + tile * kQueries, full, s.stats[ring.stage], int(sizeof(s.stats[0])));
    }
  } else {
    registers_up<240>();
    key_grad_products<kWidth, kQueries, kMasked, kOverlap>(x, s, tiles, b, h, segment, k0,
                                                           int(threadIdx.x) / 128 - 1);
  }
#endif
}

BackwardArguments arguments(const BackwardInput& in, const Tensor& dq, const Tensors& dk, const Tensors& dv,
                            int query_rows, int key_rows) {
  BackwardArguments x{.q = head_rows_map(in.q, query_rows),
                      .dout = head_rows_map(in.dout, query_rows),
                      .k = {},
                      .v = {},
                      .keys = KeyTiles(in.k, key_rows),
                      .queries = int(in.q.dim(1)),
                      .heads = int(in.q.dim(2)),
                      .d = int(in.q.dim(3)),
                      .stat_rows = int(in.stats.dim(2)),
                      .scale = in.scale,
                      .mask = pointer<uint8_t>(in.mask),
                      .stats = reinterpret_cast<const float2*>(in.stats.data<float>()),
                      .dq = pointer<__nv_bfloat16>(dq),
                      .dk = {},
                      .dv = {}};
  for (size_t i = 0; i < in.k.size(); ++i) {
    x.k[i] = head_rows_map(in.k[i], key_rows);
    x.v[i] = head_rows_map(in.v[i], key_rows);
    x.dk[i] = pointer<__nv_bfloat16>(dk[i]);
    x.dv[i] = pointer<__nv_bfloat16>(dv[i]);
  }
  return x;
}

template <class Shared>
void run(void (*kernel)(BackwardArguments), const BackwardArguments& x, int tiles, int64_t batch) {
  constexpr int kBytes = int(sizeof(Shared)) + 1024;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  launch({dim3(unsigned(tiles), unsigned(x.heads), unsigned(batch)), kBlock, kBytes}, kernel, x);
}

template <int kWidth, int kKeys, int kQueries, bool kOverlap>
void backward(const BackwardInput& in, const Tensor& dq, const Tensors& dk, const Tensors& dv) {
  static_assert(kStatRows % kQueries == 0 && kStatRows % kRows == 0);
  const int64_t batch = in.q.dim(0);
  const bool masked = in.mask.defined();
  const BackwardArguments of_queries = arguments(in, dq, dk, dv, kRows, kKeys);
  run<BackwardShared<kWidth, kKeys>>(
      masked ? query_grad_kernel<kWidth, kKeys, true> : query_grad_kernel<kWidth, kKeys, false>, of_queries,
      int(blocks_for(of_queries.queries, kRows)), batch);
  const BackwardArguments of_keys = arguments(in, dq, dk, dv, kQueries, kRows);
  run<BackwardShared<kWidth, kQueries>>(masked ? key_grad_kernel<kWidth, kQueries, true, kOverlap>
                                               : key_grad_kernel<kWidth, kQueries, false, kOverlap>,
                                        of_keys, of_keys.keys.tiles, batch);
}

}  // namespace

void attention_backward_wgmma(const BackwardInput& in, const Tensor& dq, const Tensors& dk,
                              const Tensors& dv) {
  const int64_t d = in.q.dim(3);
  if (d <= 64)
    backward<64, 96, 64, true>(in, dq, dk, dv);
  else if (d <= 112)
    backward<112, 96, 64, true>(in, dq, dk, dv);
  else
    backward<128, 80, 64, false>(in, dq, dk, dv);
}

}  // namespace rivulet::cuda
