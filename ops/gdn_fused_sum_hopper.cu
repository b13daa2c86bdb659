#include "ops/gdn_fused.cuh"
#include "ops/wgmma.cuh"

// Phase A on Hopper's asynchronous tensor cores: two warpgroups multiply what two others make of k and v.
// Write strengths enter as their roots on both sides of a product, so that P and Pz are symmetric: of their
// lower half only the last 48 channels are computed. Same results as gdn_fused_sum.cu up to the order of
// sums.
namespace rivulet::cuda {
namespace {

constexpr int kD = 112, kPieces = kD / 8;  // 16-byte pieces of a token
constexpr int kGroup = 128, kSumThreads = 4 * kGroup;
constexpr int kStep = 32, kRowsAtOnce = 16;  // tokens of a stage, and those that the makers make at once
constexpr int kMakers = kRowsAtOnce * kPieces, kMakerWarps = kMakers / 32, kUsers = 2 * kGroup;
constexpr int kItems = kStep / kRowsAtOnce;
constexpr int kPrefetch = 4;  // stages that k and v are asked for ahead of their use
constexpr int kTop = 64;      // channels of the first panel
static_assert(kMakers % 32 == 0 && kMakers <= 2 * kGroup);

// One operand of a stage: tokens are rows, channels columns (columns_operand of wgmma.cuh); those from kD on
// are zeros.
constexpr int kOperand = panels_of(kD) * panel_bytes(kStep);

// Where 16 bytes of a row of an operand lie: panels are swizzled.
__device__ inline int piece_at(int row, int piece) {
  return piece / 8 * panel_bytes(kStep) + row * kPanelRowBytes + ((piece % 8) ^ (row % 8)) * 16;
}

template <int kStages>
struct SumShared {
  alignas(1024) unsigned char plain[kStages][kOperand], turned[kStages][kOperand], values[kStages][kOperand];
  float b_parts[kRowsAtOnce][kD];
  uint64_t full[kStages], empty[kStages];
};
// What takes the place of the stages when all is summed.
struct Sums {
  float p_z[kD * kD], p[kD * kD], a[kD * kD];
};

struct SumArguments {
  FusedSizes n;
  FusedRows k, v;
  const float* beta;
  ChannelWeights norm;
  const float* r;
  const uint32_t* angles;
  float key_scale;
  half_t* p;
  float *p_z, *a, *b;
};

#ifdef RIVULET_SM90A

// What a maker reads of one token.
struct Item {
  uint4 k, v, angle;
  float r, beta;
};

// Makes the operands of this block's stages. Thread `t` of the makers has one piece of every kRowsAtOnce-th
// token; its parts of b come out.
template <int kStages>
__device__ void make_operands(const SumArguments& x, SumShared<kStages>& s, const FusedCell& cell, int begin,
                              int end) {
  const int t = int(threadIdx.x) - kUsers;
  if (t >= kMakers) return;
  const int row = t / kPieces, piece = t % kPieces, last = x.n.s - 1;
  float weight[8], b_sum[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) weight[i] = x.norm.at(cell.h * kD + 8 * piece + i);
  const half_t *k = x.k.at(cell, kD) + 8 * piece, *v = x.v.at(cell, kD) + 8 * piece;
  const uint32_t* angles = x.angles + int64_t(cell.place(x.n)) * (kD / 2) + 4 * piece;
  const float *r = x.r + x.n.tokens() + cell.token(x.n),
              *beta = x.beta + int64_t(cell.token(x.n)) * x.n.h + cell.h;
  Item next;
  const auto load = [&](int token) {
    const bool valid = token <= last;
    const int at = min(token, last);
    next.k = __ldg(reinterpret_cast<const uint4*>(k + at * x.k.step_s));
    next.v = __ldg(reinterpret_cast<const uint4*>(v + at * x.v.step_s));
    next.angle = __ldg(reinterpret_cast<const uint4*>(angles + at * (kD / 2)));
    next.r = valid ? r[at] : 0;
    next.beta = valid ? beta[at * x.n.h] : 0;
  };
  const auto ask = [&](int stage) {
    if (piece % 2 != 0 || stage >= end) return;  // a sector of memory holds two pieces
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int at = min(stage * kStep + i * kRowsAtOnce + row, last);
      prefetch_to_l2(k + at * x.k.step_s);
      prefetch_to_l2(v + at * x.v.step_s);
    }
  };
  load(begin * kStep + row);
#pragma unroll
  for (int ahead = 1; ahead < kPrefetch; ++ahead) ask(begin + ahead);
  Ring<kStages> ring;
  for (int stage = begin; stage < end; ++stage, ring.next()) {
    ask(stage + kPrefetch);
    barrier_wait(&s.empty[ring.stage], ring.parity ^ 1);
#pragma unroll 1
    for (int i = 0; i < kItems; ++i) {
      const Item item = next;
      load(stage * kStep + (i + 1) * kRowsAtOnce + row);
      const float root = sqrtf(item.beta), scale = item.r * x.key_scale * root;
      const uint32_t kw[4] = {item.k.x, item.k.y, item.k.z, item.k.w},
                     vw[4] = {item.v.x, item.v.y, item.v.z, item.v.w},
                     aw[4] = {item.angle.x, item.angle.y, item.angle.z, item.angle.w};
      Pack<uint32_t, 4> plain, turned, values;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 raw = unpack2(kw[j]), turn = unpack_angle(aw[j]), value = unpack2(vw[j]);
        const float f0 = fmaxf(raw.x * weight[2 * j], 0.0f) * scale,
                    f1 = fmaxf(raw.y * weight[2 * j + 1], 0.0f) * scale;
        b_sum[2 * j] += f0 * root;
        b_sum[2 * j + 1] += f1 * root;
        plain.v[j] = pack2(f0, f1);
        turned.v[j] = pack2(f0 * turn.x - f1 * turn.y, f0 * turn.y + f1 * turn.x);
        values.v[j] = pack2(value.x * root, value.y * root);
      }
      const int at = piece_at(i * kRowsAtOnce + row, piece);
      store_pack(reinterpret_cast<uint32_t*>(s.plain[ring.stage] + at), plain);
      store_pack(reinterpret_cast<uint32_t*>(s.turned[ring.stage] + at), turned);
      store_pack(reinterpret_cast<uint32_t*>(s.values[ring.stage] + at), values);
    }
    async_proxy_fence();
    __syncwarp();
    if (t % 32 == 0) barrier_arrive(&s.full[ring.stage]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) s.b_parts[row][8 * piece + i] = b_sum[i];
}

// f(row, column, value, next value) over an accumulator of kColumns columns.
template <int kCount, class F>
__device__ void for_pairs(const float (&x)[kCount], F&& f) {
  const int lane = int(threadIdx.x) % 32, row = int(threadIdx.x) % kGroup / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      f(row + 8 * half, 8 * j + lane % 4 * 2, x[4 * j + 2 * half], x[4 * j + 2 * half + 1]);
}
__device__ inline void put_pair(float* to, int row, int column, float x, float y) {
  *reinterpret_cast<float2*>(to + row * kD + column) = {x, y};
}
// A symmetric matrix's upper half, mirrored into the lower left, and its lower corner.
__device__ inline void put_upper(float* to, const float (&upper)[56]) {
  for_pairs(upper, [&](int row, int column, float x, float y) {
    put_pair(to, row, column, x, y);
    if (column < kTop) return;
    to[column * kD + row] = x;
    to[(column + 1) * kD + row] = y;
  });
}
__device__ inline void put_corner(float* to, const float (&corner)[32]) {
  for_pairs(corner, [&](int row, int column, float x, float y) {
    if (kTop + row < kD && kTop + column < kD) put_pair(to, kTop + row, kTop + column, x, y);
  });
}

struct Accumulators {
  float first[56], second[56], corner[32];
};

// first += left0' right0, second += left1' right1, corner += the lower corner of own' own.
template <int kStages>
__device__ void multiply(Accumulators& sum, SumShared<kStages>& s, int begin, int end, uint64_t left0,
                         uint64_t left1, uint64_t right0, uint64_t right1, uint64_t own) {
  const uint64_t corner = own + (panel_bytes(kStep) >> 4);
  Ring<kStages> ring;
  int before = -1;
  for (int stage = begin; stage < end; ++stage, ring.next()) {
    barrier_wait(&s.full[ring.stage], ring.parity);
    const uint64_t at = uint64_t(ring.stage * kOperand) >> 4;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      const uint64_t step = at + columns_operand_step(k);
      const int add = stage > begin || k > 0;
      Wgmma<kD>::run<1, 1>(sum.first, left0 + step, right0 + step, add);
      Wgmma<kD>::run<1, 1>(sum.second, left1 + step, right1 + step, add);
      Wgmma<64>::run<1, 1>(sum.corner, corner + step, corner + step, add);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (before >= 0 && threadIdx.x % 32 == 0) barrier_arrive(&s.empty[before]);
    before = ring.stage;
  }
  wgmma_wait<0>();
  pin(sum.first);
  pin(sum.second);
  pin(sum.corner);
}

// When both warpgroups are here, nobody reads the stages any more.
__device__ inline void users_meet() { asm volatile("bar.sync 1, %0;" ::"n"(kUsers) : "memory"); }

// The first warpgroup: the upper halves of Pz and P, and P's lower corner.
template <int kStages>
__device__ void sum_upper(SumShared<kStages>& s, Sums& to, int begin, int end) {
  Accumulators sum;
  const uint64_t plain = columns_operand(s.plain, kStep), turned = columns_operand(s.turned, kStep);
  multiply(sum, s, begin, end, plain, turned, plain, turned, turned);
  users_meet();
  put_upper(to.p_z, sum.first);
  put_upper(to.p, sum.second);
  put_corner(to.p, sum.corner);
}
// The second: A', and Pz's corner.
template <int kStages>
__device__ void sum_values(SumShared<kStages>& s, Sums& to, int begin, int end) {
  Accumulators sum;
  const uint64_t plain = columns_operand(s.plain, kStep), turned = columns_operand(s.turned, kStep),
                 values = columns_operand(s.values, kStep);
  multiply(sum, s, begin, end, values, values + (panel_bytes(kStep) >> 4), turned, turned, plain);
  users_meet();
  for_pairs(sum.first, [&](int row, int column, float x, float y) { put_pair(to.a, row, column, x, y); });
  for_pairs(sum.second, [&](int row, int column, float x, float y) {
    if (kTop + row < kD) put_pair(to.a, kTop + row, column, x, y);
  });
  put_corner(to.p_z, sum.corner);
}

template <int kSplit>
__device__ void meet() {
  if constexpr (kSplit == 1)
    __syncthreads();
  else
    cooperative_groups::this_cluster().sync();
}

// The sum of the cluster's parts, four values at a time, in the order of its blocks.
template <int kSplit>
__device__ float4 total_of(float* part, int i) {
  if constexpr (kSplit == 1) return reinterpret_cast<const float4*>(part)[i];
  const auto cluster = cooperative_groups::this_cluster();
  float4 total = {};
#pragma unroll
  for (int source = 0; source < kSplit; ++source) {
    const float4 x = reinterpret_cast<const float4*>(cluster.map_shared_rank(part, source))[i];
    total = {total.x + x.x, total.y + x.y, total.z + x.z, total.w + x.w};
  }
  return total;
}

#endif

// A cluster of kSplit blocks per cell, each with its share of the frame's tokens.
template <int kSplit, int kStages>
__global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kSumThreads, 1)
    sum_frame_hopper_kernel(const __grid_constant__ SumArguments x) {
#ifdef RIVULET_SM90A
  extern __shared__ unsigned char shared[];
  auto& s =
      *reinterpret_cast<SumShared<kStages>*>((reinterpret_cast<uintptr_t>(shared) + 1023) / 1024 * 1024);
  static_assert(sizeof(Sums) <= offsetof(SumShared<kStages>, b_parts));
  auto& sums = *reinterpret_cast<Sums*>(s.plain);
  const FusedCell cell(int(blockIdx.x) / kSplit, x.n);
  const int rank = int(blockIdx.x) % kSplit, group = int(threadIdx.x) / kGroup;
  const int stages = (x.n.s + kStep - 1) / kStep, begin = stages * rank / kSplit,
            end = stages * (rank + 1) / kSplit;
  if (threadIdx.x == 0)
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[i], kMakerWarps);
      barrier_init(&s.empty[i], kUsers / 32);
    }
  // The channels from kD on are zeros and stay so.
  constexpr int kPadding = panels_of(kD) * 8 - kPieces;
  for (int i = int(threadIdx.x); i < 3 * kStages * kStep * kPadding; i += kSumThreads) {
    const int row = i / kPadding % kStep, piece = kPieces + i % kPadding;
    *reinterpret_cast<uint4*>(s.plain[0] + i / kPadding / kStep * kOperand + piece_at(row, piece)) = {};
  }
  async_proxy_fence();
  __syncthreads();
  const int64_t square = int64_t(cell.index) * kD * kD;
  if (group >= 2) {
    registers_down<80>();
    make_operands(x, s, cell, begin, end);
    meet<kSplit>();
    const int channel = int(threadIdx.x) - kUsers;
    if (rank == 0 && channel < kD) {
      float total = 0;
      for (int source = 0; source < kSplit; ++source) {
        const float* from = &s.b_parts[0][channel];
        if constexpr (kSplit > 1)
          from = cooperative_groups::this_cluster().map_shared_rank(&s.b_parts[0][channel], source);
#pragma unroll
        for (int i = 0; i < kRowsAtOnce; ++i) total += from[i * kD];
      }
      x.b[cell.index * kD + channel] = total;
    }
  } else {
    registers_up<176>();
    if (group == 0)
      sum_upper(s, sums, begin, end);
    else
      sum_values(s, sums, begin, end);
    meet<kSplit>();
    constexpr int kShare = kD * kD / 4 / kSplit;
    for (int i = rank * kShare + int(threadIdx.x); i < (rank + 1) * kShare; i += kUsers) {
      const float4 p = total_of<kSplit>(sums.p, i);
      reinterpret_cast<uint2*>(x.p + square)[i] = {pack2(p.x, p.y), pack2(p.z, p.w)};
      reinterpret_cast<float4*>(x.p_z + square)[i] = total_of<kSplit>(sums.p_z, i);
      reinterpret_cast<float4*>(x.a + square)[i] = total_of<kSplit>(sums.a, i);
    }
  }
  if constexpr (kSplit > 1) meet<kSplit>();  // a block's memory is read by the others until here
#endif
}

// Into how many blocks a cell's tokens go so that the GPU's processors share the work best. A block's start
// and end take about as long as kEdge stages.
int best_split(int cells, int stages) {
  constexpr double kEdge = 6;
  const auto time = [&](int split) {
    return (cells * split + processors() - 1) / processors() * (double(stages) / split + kEdge);
  };
  int best = 1;
  for (const int split : {2, 4})
    if (split <= stages && time(split) < time(best)) best = split;
  return best;
}

}  // namespace

bool sums_frames_by_wgmma(const FusedSizes& n) { return n.d == kD && has_wgmma(); }

void sum_frames_wgmma(const FusedSizes& n, const GdnFusedInputs& in, const GdnFusedSaved& saved,
                      float key_scale, float* a, float* b) {
  constexpr int kStages = 7;
  const SumArguments x{n,
                       FusedRows(in.k),
                       FusedRows(in.v),
                       pointer<float>(saved.beta),
                       ChannelWeights(in.k_norm),
                       pointer<float>(saved.r),
                       pointer<uint32_t>(saved.angles),
                       key_scale,
                       pointer<half_t>(saved.p),
                       pointer<float>(saved.p_z),
                       a,
                       b};
  const auto sum = [&]<int kSplit>() {
    constexpr size_t kBytes = sizeof(SumShared<kStages>) + 1024;
    allow_shared(sum_frame_hopper_kernel<kSplit, kStages>, kBytes);
    launch({unsigned(n.cells() * kSplit), kSumThreads, kBytes}, sum_frame_hopper_kernel<kSplit, kStages>, x);
  };
  const int split = best_split(n.cells(), (n.s + kStep - 1) / kStep);
  if (split == 1) sum.template operator()<1>();
  if (split == 2) sum.template operator()<2>();
  if (split == 4) sum.template operator()<4>();
}

}  // namespace rivulet::cuda
