// Convolution on Hopper's tensor cores. A block is a warpgroup that copies and two that multiply. For every tap
// and 64 channels the copy engine brings the tile's pixels, moved by the tap, and the weights; pixels beyond
// the store come as zeros. Two blocks share what both need: the weights of two tiles of pixels, or the pixels
// of two tiles of channels. Blocks stay and take one tile after another; copies run ahead of the products
// across tiles.
#include "ops/conv_task.cuh"
#include "ops/wgmma.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kBlock = 384;

struct HopperTask {
  CUtensorMap x[2], w;
  ConvTask task;
  int pair = 0;  // what two blocks share: 0 nothing, 1 weights, 2 pixels
  int units = 0;
};

template <int kM, int kN>
struct Tiles {
  static constexpr int rows = 128 * kM, a_bytes = panel_bytes(rows), b_bytes = panel_bytes(kN),
                       stages = 200 * 1024 / (a_bytes + b_bytes) > 6 ? 6 : 200 * 1024 / (a_bytes + b_bytes);
  struct Shared {
    alignas(1024) unsigned char a[stages][a_bytes];
    unsigned char b[stages][b_bytes];
    uint64_t full[stages], empty[stages];
  };
};

#ifdef RIVULET_SM90A

__device__ inline uint32_t cluster_rank() {
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// Arrives at the same barrier of another block of the cluster.
__device__ inline void arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
__device__ inline void wait_cluster(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// A box of pixels: channel, column, row, frame. `both`: into both blocks of the cluster.
__device__ inline void load_box(const CUtensorMap* map, uint64_t* barrier, void* to, int c, int x, int y, int t,
                                bool both) {
  if (both)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(t), "h"(uint16_t(3))
        : "memory");
  else
    load_panel(map, barrier, to, c, x, y, t);
}
// Rows of weights: channel, tap, output channel.
__device__ inline void load_weights(const CUtensorMap* map, uint64_t* barrier, void* to, int c, int tap, int n,
                                    bool both) {
  if (both)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(tap), "r"(n), "h"(uint16_t(3))
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(tap), "r"(n)
        : "memory");
}

// Unit u of this block: tile m of pixels, n of channels, taps [tap, tap_end).
struct Unit {
  int m, n, split, tap, tap_end;
  __device__ Unit(const HopperTask& h, int u, int rank) {
    const ConvTask& t = h.task;
    split = u % t.splits;
    u /= t.splits;
    if (h.pair == 2) {
      const int pairs = (t.tiles_n + 1) / 2;
      n = u % pairs * 2 + rank;
      m = u / pairs;
    } else {
      n = u % t.tiles_n;
      m = u / t.tiles_n;
      if (h.pair == 1) m = 2 * m + rank;
    }
    const int taps = t.kt * t.kh * t.kw;
    tap = taps * split / t.splits;
    tap_end = taps * (split + 1) / t.splits;
  }
};

template <int kM, int kN>
__device__ void copies(const HopperTask& h, typename Tiles<kM, kN>::Shared& s, int rank, int first, int step) {
  const ConvTask& t = h.task;
  const int box_bytes = panel_bytes(t.box_rows()), bytes = t.boxes() * box_bytes + int(sizeof(s.b[0]));
  const int b_from = h.pair == 1 ? rank * (kN / 2) : 0;
  Ring<Tiles<kM, kN>::stages> ring;
  for (int u = first; u < h.units; u += step) {
    const Unit unit(h, u, rank);
    int t0, y0, x0;
    t.origin(unit.m, t0, y0, x0);
    const int b0 = t0 / t.frames;
    t0 -= b0 * t.frames;
    x0 += t.x0, y0 += t.y0;
    const int taps = t.kt * t.kh * t.kw;
    int ux = unit.tap % t.kw, uy = unit.tap / t.kw % t.kh, ut = unit.tap / (t.kw * t.kh);
    for (int tap = unit.tap; tap < unit.tap_end; ++tap) {
      for (int c = 0; c < t.c; c += kPanelColumns, ring.next()) {
        wait_cluster(&s.empty[ring.stage], ring.parity ^ 1);
        uint64_t* full = &s.full[ring.stage];
        barrier_expect(full, bytes);
        unsigned char* to = s.a[ring.stage];
        int b = b0, o = t0;
        bool mine = h.pair != 2 || rank == 0;
        for (int d = 0; d < t.deep; ++d) {
          const int place = b < t.batch ? t.x.at[o + ut] : Frames::kZero;
          // A place before the first is a frame of zeros.
          const bool second = place < 0 && place != Frames::kZero;
          const int frame = place == Frames::kZero ? -1 : (second ? -1 - place : place) + b * t.x.step;
          for (int a = 0; a < t.across; ++a, to += box_bytes) {
            if (mine) load_box(&h.x[second], full, to, c, x0 + ux, y0 + a * t.box_h + uy, frame, h.pair == 2);
            mine = mine != (h.pair == 2);
          }
          if (++o == t.frames) o = 0, ++b;
        }
        load_weights(&h.w, full, s.b[ring.stage] + panel_bytes(b_from), c, t.flipped ? taps - 1 - tap : tap,
                     unit.n * kN + b_from, h.pair == 1);
      }
      if (++ux == t.kw) {
        ux = 0;
        if (++uy == t.kh) uy = 0, ++ut;
      }
    }
  }
}

template <int kM, int kN>
__device__ void products(const HopperTask& h, typename Tiles<kM, kN>::Shared& s, int rank, int first, int step,
                         int group) {
  using T = Tiles<kM, kN>;
  const ConvTask& t = h.task;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
  const uint64_t a = rows_operand(s.a[0] + panel_bytes(64 * kM) * group), b = rows_operand(s.b[0]);
  const auto release = [&](int stage) {
    if (lane == 0) barrier_arrive(&s.empty[stage]);
    if (h.pair != 0 && lane == 1) arrive_at(&s.empty[stage], uint32_t(rank ^ 1));
  };
  const int c_blocks = (t.c + kPanelColumns - 1) / kPanelColumns;
  Ring<T::stages> ring;
  for (int u = first; u < h.units; u += step) {
    const Unit unit(h, u, rank);
    float sums[kM][kN / 2];
    int before = -1;
    const int blocks = (unit.tap_end - unit.tap) * c_blocks;
    for (int i = 0; i < blocks; ++i) {
      barrier_wait(&s.full[ring.stage], ring.parity);
      const uint64_t sa = a + uint32_t(ring.stage * (T::a_bytes >> 4)),
                     sb = b + uint32_t(ring.stage * (T::b_bytes >> 4));
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kPanelColumns; k += 16)
#pragma unroll
        for (int i_m = 0; i_m < kM; ++i_m)
          Wgmma<kN>::template run<0>(sums[i_m], sa + (panel_bytes(64 * i_m) >> 4) + rows_operand_step(64, k),
                                     sb + rows_operand_step(kN, k), i > 0 || k > 0);
      wgmma_commit();
      if (before >= 0) {
        wgmma_wait<1>();
        release(before);
      }
      before = ring.stage;
      ring.next();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i_m = 0; i_m < kM; ++i_m) pin(sums[i_m]);
    release(before);
    if (unit.m < t.tiles_w * t.tiles_h * t.tiles_t && unit.n < t.tiles_n)
#pragma unroll
      for (int i_m = 0; i_m < kM; ++i_m)
        store_sums<kN>(t, sums[i_m], unit.m, (group * kM + i_m) * 64 + warp * 16, unit.n * kN, unit.split);
  }
}

#endif  // RIVULET_SM90A

template <int kM, int kN>
__global__ void __launch_bounds__(kBlock, 1) conv_wgmma_kernel(const __grid_constant__ HopperTask h) {
#ifdef RIVULET_SM90A
  extern __shared__ unsigned char raw[];
  using T = Tiles<kM, kN>;
  auto& s = *reinterpret_cast<typename T::Shared*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  const int size = h.pair != 0 ? 2 : 1, rank = h.pair != 0 ? int(cluster_rank()) : 0;
  const int first = int(blockIdx.x) / size, step = int(gridDim.x) / size;
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::stages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 8 * size);
    }
    barrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    registers_down<40>();
    if (threadIdx.x == 0) copies<kM, kN>(h, s, rank, first, step);
  } else {
    registers_up<232>();
    products<kM, kN>(h, s, rank, first, step, int(threadIdx.x) / 128 - 1);
  }
  __syncwarp();
  cluster_sync();  // the other block may still write here
#endif
}

CUtensorMap pixels_map(const Tensor& store, int box_w, int box_h) {
  const cuuint64_t c = cuuint64_t(store.dim(3)), w = cuuint64_t(store.dim(2)), h = cuuint64_t(store.dim(1)),
                   n = cuuint64_t(store.dim(0));
  return tiled_map(store.raw(), {c, w, h, n}, {2 * c, 2 * c * w, 2 * c * w * h},
                   {kPanelColumns, cuuint32_t(box_w), cuuint32_t(box_h), 1});
}

template <int kM, int kN>
void run(ConvTask task, const Frames& x, const Tensor& w, int pair) {
  using T = Tiles<kM, kN>;
  task.cut(T::rows, kN, pair == 2);
  HopperTask h;
  h.task = task;
  const int size = pair != 0 ? 2 : 1, m = task.tiles_m(), n = task.tiles_n;
  h.pair = pair;
  h.units = (pair == 1 ? (m + 1) / 2 * n : pair == 2 ? m * ((n + 1) / 2) : m * n) * task.splits;
  for (int i = 0; i < 2; ++i)
    if (x.stores[i]) h.x[i] = pixels_map(x.stores[i], task.box_w, task.box_h);
  if (!x.stores[0]) h.x[0] = h.x[1];
  const cuuint64_t c = cuuint64_t(task.c), taps = cuuint64_t(task.taps());
  h.w = tiled_map(w.raw(), {c, taps, cuuint64_t(w.dim(0))}, {2 * c, 2 * c * taps},
                  {kPanelColumns, 1, cuuint32_t(pair == 1 ? kN / 2 : kN)});
  const auto kernel = conv_wgmma_kernel<kM, kN>;
  const size_t bytes = sizeof(typename T::Shared) + 1024;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(std::min(h.units * size, processors() / size * size)));
  config.blockDim = dim3(kBlock);
  config.dynamicSmemBytes = bytes;
  config.stream = stream();
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(size);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = 1;
  cuda_check(cudaLaunchKernelEx(&config, kernel, h));
}

}  // namespace

void conv_products_wgmma(const ConvTask& task, const Frames& x, const Tensor& w, int columns, int pair) {
  if (columns == 256)
    run<1, 256>(task, x, w, pair);
  else if (columns == 128)
    run<2, 128>(task, x, w, pair);
  else
    run<2, 64>(task, x, w, pair);
}

}  // namespace rivulet::cuda
