// Convolution on Hopper's tensor cores, for kernels of 3 x 3 in space. A block is a warpgroup that copies and
// two that multiply; blocks stay and take one tile after another, and copies run ahead of the products across
// tiles.
//
// A tile is squares of 8 x 8 pixels. Of each square, 10 x 10 pixels of 64 channels come into shared memory
// once for nine taps: the operand of a tap is the same memory read from a row further on, for 8 pixels of an
// image row are 8 rows of the operand, and the next image row starts 10 rows later. The 128-byte swizzle goes
// by addresses, so any row may be the first. Pixels beyond the store come as zeros.
//
// Blocks in pairs that share their weights by multicast were slower at every shape.
#include <algorithm>

#include "ops/conv_task.cuh"
#include "ops/wgmma.cuh"

namespace rivulet::cuda {
namespace {

struct HopperTask {
  CUtensorMap x[2], w;
  ConvTask task;
  int units = 0;
};

constexpr int kBlock = 384, kSide = 10;  // of a square with its halo
constexpr int kSquareBytes = panel_bytes(kSide * kSide), kSquareRoom = (kSquareBytes + 1023) / 1024 * 1024;

// kM squares for each of the two warpgroups, kN channels.
template <int kM, int kN>
struct Tiles {
  static constexpr int squares = 2 * kM, x_stages = 2, x_bytes = squares * kSquareRoom,
                       b_bytes = panel_bytes(kN), room = 222 * 1024 - x_stages * x_bytes,
                       b_stages = room / b_bytes > 8 ? 8 : room / b_bytes;
  struct Shared {
    alignas(1024) unsigned char x[x_stages][x_bytes];
    unsigned char b[b_stages][b_bytes];
    uint64_t x_full[x_stages], x_empty[x_stages], b_full[b_stages], b_empty[b_stages];
  };
};

#ifdef RIVULET_SM90A

// Rows of 64 columns whose groups of 8 lie kSide rows apart.
__device__ inline uint64_t halo_operand(const void* square) {
  return uint64_t((shared_address(square) & 0x3ffff) >> 4) | uint64_t(1) << 16 |
         uint64_t(panel_bytes(kSide) >> 4) << 32 | uint64_t(1) << 62;
}

// Rows of weights: channel, tap, output channel.
__device__ inline void load_weights(const CUtensorMap* map, uint64_t* barrier, void* to, int c, int tap,
                                    int n) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(tap), "r"(n)
      : "memory");
}

// Tile m of pixels, n of channels, taps [tap, tap_end) in whole frames of the kernel.
struct Unit {
  int m, n, split, tap, tap_end;
  __device__ Unit(const ConvTask& t, int u) {
    split = u % t.splits;
    u /= t.splits;
    n = u % t.tiles_n;
    m = u / t.tiles_n;
    tap = t.kt * split / t.splits * 9;
    tap_end = t.kt * (split + 1) / t.splits * 9;
  }
};

template <int kM, int kN>
__device__ void copies(const HopperTask& h, typename Tiles<kM, kN>::Shared& s) {
  using T = Tiles<kM, kN>;
  const ConvTask& t = h.task;
  const int taps = t.kt * 9;
  Ring<T::x_stages> xs;
  Ring<T::b_stages> bs;
  for (int u = int(blockIdx.x); u < h.units; u += int(gridDim.x)) {
    const Unit unit(t, u);
    int frame_t[T::squares], frame_b[T::squares], y[T::squares], x[T::squares];
#pragma unroll
    for (int i = 0; i < T::squares; ++i) {
      t.square(unit.m * T::squares + i, frame_t[i], y[i], x[i]);
      frame_b[i] = frame_t[i] / t.frames;
      frame_t[i] -= frame_b[i] * t.frames;
    }
    for (int plane = unit.tap; plane < unit.tap_end; plane += 9)
      for (int c = 0; c < t.c; c += kPanelColumns, xs.next()) {
        barrier_wait(&s.x_empty[xs.stage], xs.parity ^ 1);
        barrier_expect(&s.x_full[xs.stage], T::squares * kSquareBytes);
#pragma unroll
        for (int i = 0; i < T::squares; ++i) {
          const int place = frame_b[i] < t.batch ? t.x.at[frame_t[i] + plane / 9] : Frames::kZero;
          // A place before the first is a frame of zeros.
          const bool second = place < 0 && place != Frames::kZero;
          const int frame =
              place == Frames::kZero ? -1 : (second ? -1 - place : place) + frame_b[i] * t.x.step;
          load_panel(&h.x[second], &s.x_full[xs.stage], s.x[xs.stage] + i * kSquareRoom, c, t.x0 + x[i],
                     t.y0 + y[i], frame);
        }
        for (int tap = plane; tap < plane + 9; ++tap, bs.next()) {
          barrier_wait(&s.b_empty[bs.stage], bs.parity ^ 1);
          barrier_expect(&s.b_full[bs.stage], int(sizeof(s.b[0])));
          load_weights(&h.w, &s.b_full[bs.stage], s.b[bs.stage], c, t.flipped ? taps - 1 - tap : tap,
                       unit.n * kN);
        }
      }
  }
}

template <int kM, int kN>
__device__ void products(const HopperTask& h, typename Tiles<kM, kN>::Shared& s, int group) {
  using T = Tiles<kM, kN>;
  const ConvTask& t = h.task;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
  const uint64_t x = halo_operand(s.x[0] + kSquareRoom * kM * group), b = rows_operand(s.b[0]);
  const auto release = [&](uint64_t* barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };
  const int c_blocks = (t.c + kPanelColumns - 1) / kPanelColumns;
  Ring<T::x_stages> xs;
  Ring<T::b_stages> bs;
  for (int u = int(blockIdx.x); u < h.units; u += int(gridDim.x)) {
    const Unit unit(t, u);
    float sums[kM][kN / 2];
    int before = -1, x_before = -1, add = 0;
    const int blocks = (unit.tap_end - unit.tap) / 9 * c_blocks;
    for (int i = 0; i < blocks; ++i, xs.next()) {
      barrier_wait(&s.x_full[xs.stage], xs.parity);
      uint64_t row = x + uint32_t(xs.stage * (T::x_bytes >> 4));
      int column = 0;
      for (int tap = 0; tap < 9; ++tap, bs.next()) {
        barrier_wait(&s.b_full[bs.stage], bs.parity);
        const uint64_t sb = b + uint32_t(bs.stage * (T::b_bytes >> 4));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kPanelColumns; k += 16)
#pragma unroll
          for (int i_m = 0; i_m < kM; ++i_m)
            Wgmma<kN>::template run<0>(sums[i_m], row + (kSquareRoom >> 4) * i_m + rows_operand_step(64, k),
                                       sb + rows_operand_step(kN, k), k > 0 ? 1 : add);
        wgmma_commit();
        add = 1;
        if (before >= 0) {
          wgmma_wait<1>();
          release(&s.b_empty[before]);
          // The products with the pixels before have ended as well.
          if (x_before >= 0) release(&s.x_empty[x_before]);
          x_before = -1;
        }
        before = bs.stage;
        // On to the next pixel, or the next row of the kernel.
        row += panel_bytes(1) >> 4;
        if (++column == 3) column = 0, row += panel_bytes(kSide - 3) >> 4;
      }
      x_before = xs.stage;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i_m = 0; i_m < kM; ++i_m) pin(sums[i_m]);
    release(&s.b_empty[before]);
    release(&s.x_empty[x_before]);
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
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::x_stages; ++i) {
      barrier_init(&s.x_full[i], 1);
      barrier_init(&s.x_empty[i], 8);
    }
    for (int i = 0; i < T::b_stages; ++i) {
      barrier_init(&s.b_full[i], 1);
      barrier_init(&s.b_empty[i], 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    registers_down<56>();
    if (threadIdx.x == 0) copies<kM, kN>(h, s);
  } else {
    registers_up<224>();
    products<kM, kN>(h, s, int(threadIdx.x) / 128 - 1);
  }
#endif
}

CUtensorMap squares_map(const Tensor& store) {
  const cuuint64_t c = cuuint64_t(store.dim(3)), w = cuuint64_t(store.dim(2)), h = cuuint64_t(store.dim(1)),
                   n = cuuint64_t(store.dim(0));
  return tiled_map(store.raw(), {c, w, h, n}, {2 * c, 2 * c * w, 2 * c * w * h},
                   {kPanelColumns, kSide, kSide, 1});
}

template <int kM, int kN>
void run(ConvTask task, const Frames& x, const Tensor& w) {
  using T = Tiles<kM, kN>;
  task.cut_squares(T::squares, kN);
  HopperTask h;
  h.task = task;
  h.units = task.tiles_m() * task.tiles_n * task.splits;
  for (int i = 0; i < 2; ++i)
    if (x.stores[i]) h.x[i] = squares_map(x.stores[i]);
  if (!x.stores[0]) h.x[0] = h.x[1];
  const cuuint64_t c = cuuint64_t(task.c), taps = cuuint64_t(task.taps());
  h.w = tiled_map(w.raw(), {c, taps, cuuint64_t(w.dim(0))}, {2 * c, 2 * c * taps}, {kPanelColumns, 1, kN});
  const auto kernel = conv_wgmma_kernel<kM, kN>;
  const size_t bytes = sizeof(typename T::Shared) + 1024;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  launch({dim3(unsigned(std::min(h.units, processors()))), kBlock, bytes}, kernel, h);
}

}  // namespace

void conv_products_wgmma(const ConvTask& task, const Frames& x, const Tensor& w, int columns) {
  if (columns == 256)
    run<1, 256>(task, x, w);
  else if (columns == 128)
    run<2, 128>(task, x, w);
  else
    run<2, 64>(task, x, w);
}

}  // namespace rivulet::cuda
