// The gradient of a convolution's weights on tensor cores, bf16 with sums in f32: for every tap the product of dy'
// and x moved by the tap, summed over positions. Positions are cut into parts, whose sums are added up in order.
#include <algorithm>

#include "ops/attention_mma.cuh"
#include "ops/conv_task.cuh"
#include "ops/wgmma.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kBoxRows = 64;  // positions of a step

struct GradTask {
  CUtensorMap x, dy;
  ConvTask task;  // x, sizes and offsets; a box is box_h x box_w = kBoxRows pixels of one frame
  const __nv_bfloat16* grads = nullptr;
  float* parts = nullptr;  // [splits, co, taps, c]
  int boxes = 0, splits = 1, tiles_co = 0, tiles_c = 0;

  struct Box {
    int b, t, y, x;
  };
  __device__ Box box(int i) const {
    const int w = task.tiles_w, h = task.tiles_h, frame = i / (w * h);
    return {frame / task.frames, frame % task.frames, i / w % h * task.box_h, i % w * task.box_w};
  }
  // The boxes of a part.
  __device__ int begin(int split) const { return int(int64_t(boxes) * split / splits); }
  __device__ void store(int split, int co, int tap, int c, float a, float b) const {
    if (co >= task.co || c >= task.c) return;
    const int taps = task.kt * task.kh * task.kw;
    *reinterpret_cast<float2*>(parts + ((int64_t(split) * task.co + co) * taps + tap) * task.c + c) =
        make_float2(a, b);
  }
};

// --- Hopper: a block has 128 output channels, kC input channels and one tap ------------------------------
constexpr int kGradStages = 6, kGradBlock = 384;

template <int kC>
struct GradShared {
  alignas(1024) unsigned char dy[kGradStages][2 * panel_bytes(kBoxRows)];
  unsigned char x[kGradStages][kC / kPanelColumns * panel_bytes(kBoxRows)];
  uint64_t full[kGradStages], empty[kGradStages];
};

template <int kC>
__global__ void __launch_bounds__(kGradBlock, 1) grad_wgmma_kernel(const __grid_constant__ GradTask g) {
#ifdef RIVULET_SM90A
  extern __shared__ unsigned char raw[];
  auto& s = *reinterpret_cast<GradShared<kC>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  const ConvTask& t = g.task;
  const int tile = int(blockIdx.x), co0 = tile / g.tiles_c * 128, c0 = tile % g.tiles_c * kC,
            tap = int(blockIdx.y), split = int(blockIdx.z);
  const int first = g.begin(split), last = g.begin(split + 1);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kGradStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  Ring<kGradStages> ring;
  if (threadIdx.x < 128) {
    registers_down<40>();
    if (threadIdx.x == 0) {
      const int ux = tap % t.kw, uy = tap / t.kw % t.kh, ut = tap / (t.kw * t.kh);
      for (int i = first; i < last; ++i, ring.next()) {
        const GradTask::Box at = g.box(i);
        const int place = t.x.at[at.t + ut], frame = place == Frames::kZero ? -1 : place + at.b * t.x.step;
        barrier_wait(&s.empty[ring.stage], ring.parity ^ 1);
        uint64_t* full = &s.full[ring.stage];
        barrier_expect(full, int(sizeof(s.dy[0]) + sizeof(s.x[0])));
#pragma unroll
        for (int p = 0; p < 2; ++p)
          load_panel(&g.dy, full, s.dy[ring.stage] + p * panel_bytes(kBoxRows), co0 + p * kPanelColumns, at.x, at.y,
                     at.b * t.frames + at.t);
#pragma unroll
        for (int p = 0; p < kC / kPanelColumns; ++p)
          load_panel(&g.x, full, s.x[ring.stage] + p * panel_bytes(kBoxRows), c0 + p * kPanelColumns,
                     t.x0 + at.x + ux, t.y0 + at.y + uy, frame);
      }
    }
  } else {
    registers_up<232>();
    const int group = int(threadIdx.x) / 128 - 1, lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
    float sums[kC / 2];
#pragma unroll
    for (int i = 0; i < kC / 2; ++i) sums[i] = 0;
    for (int i = first; i < last; ++i) {
      barrier_wait(&s.full[ring.stage], ring.parity);
      const uint64_t a = columns_operand(s.dy[ring.stage] + group * panel_bytes(kBoxRows), kBoxRows),
                     b = columns_operand(s.x[ring.stage], kBoxRows);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kBoxRows; k += 16)
        Wgmma<kC>::run_columns(sums, a + columns_operand_step(k), b + columns_operand_step(k));
      wgmma_commit();
      wgmma_wait<0>();
      pin(sums);
      if (lane == 0) barrier_arrive(&s.empty[ring.stage]);
      ring.next();
    }
#pragma unroll
    for (int j = 0; j < kC / 8; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        g.store(split, co0 + group * 64 + warp * 16 + lane / 4 + 8 * r, tap, c0 + 8 * j + lane % 4 * 2,
                sums[4 * j + 2 * r], sums[4 * j + 2 * r + 1]);
  }
#endif
}

// --- The twin by mma.sync: a block of 4 warps has 64 output and 64 input channels -------------------------
constexpr int kMmaSide = 64, kMmaPitch = kMmaSide + 8, kMmaDepth = 32, kMmaStages = 3;

__global__ void __launch_bounds__(kMmaThreads) grad_mma_kernel(const __grid_constant__ GradTask g) {
  __shared__ alignas(16) __nv_bfloat16 dy[kMmaStages][kMmaDepth * kMmaPitch], x[kMmaStages][kMmaDepth * kMmaPitch];
  const ConvTask& t = g.task;
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int tile = int(blockIdx.x), co0 = tile / g.tiles_c * kMmaSide, c0 = tile % g.tiles_c * kMmaSide,
            tap = int(blockIdx.y), split = int(blockIdx.z);
  const int ux = tap % t.kw, uy = tap / t.kw % t.kh, ut = tap / (t.kw * t.kh);
  constexpr int kPerBox = kBoxRows / kMmaDepth;
  const int first = g.begin(split) * kPerBox, last = g.begin(split + 1) * kPerBox;

  const auto copy = [&](int step) {
    if (step < last) {
      const GradTask::Box at = g.box(step / kPerBox);
      const int stage = step % kMmaStages;
#pragma unroll
      for (int i = thread; i < kMmaDepth * kMmaSide / 8; i += kMmaThreads) {
        const int row = i / (kMmaSide / 8), c = i % (kMmaSide / 8) * 8, in = step % kPerBox * kMmaDepth + row;
        const int py = at.y + in / t.box_w, px = at.x + in % t.box_w;
        const bool real = at.b < t.batch && py < t.height && px < t.width;
        const int64_t o = ((int64_t(at.b) * t.frames + at.t) * t.height + py) * t.width + px;
        const bool has_dy = real && co0 + c < t.co;
        copy_async(dy[stage] + row * kMmaPitch + c, has_dy ? g.grads + o * t.co + co0 + c : g.grads, has_dy);
        const int place = real ? t.x.at[at.t + ut] : Frames::kZero, sy = py + uy + t.y0, sx = px + ux + t.x0;
        const bool has_x = place != Frames::kZero && c0 + c < t.c && sy >= 0 && sy < t.x.height && sx >= 0 &&
                           sx < t.x.width;
        copy_async(x[stage] + row * kMmaPitch + c,
                   has_x ? t.x.pixel(at.b, at.t + ut, sy, sx) + c0 + c : g.grads, has_x);
      }
    }
    copy_commit();
  };

  float sums[kMmaSide / 2] = {};
  for (int i = 0; i < kMmaStages - 1; ++i) copy(first + i);
  for (int step = first; step < last; ++step) {
    copy_wait<kMmaStages - 2>();
    __syncthreads();
    copy(step + kMmaStages - 1);
    const __nv_bfloat16 *a_at = dy[step % kMmaStages] + (lane / 16 * 8 + lane % 8) * kMmaPitch + warp * 16 +
                                lane / 8 % 2 * 8,
                        *b_at = x[step % kMmaStages] + lane % 16 * kMmaPitch + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kMmaDepth; k += 16) {
      uint32_t a[4];
      load_transposed(a, a_at + k * kMmaPitch);
#pragma unroll
      for (int j = 0; j < kMmaSide / 16; ++j) {
        uint32_t b[4];
        load_transposed(b, b_at + k * kMmaPitch + 16 * j);
        mma(sums + 8 * j, a, b[0], b[1]);
        mma(sums + 8 * j + 4, a, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kMmaSide / 8; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      g.store(split, co0 + warp * 16 + lane / 4 + 8 * r, tap, c0 + 8 * j + lane % 4 * 2, sums[4 * j + 2 * r],
              sums[4 * j + 2 * r + 1]);
}

// Boxes of exactly kBoxRows pixels, few of them.
void cut_boxes(ConvTask& t) {
  int64_t best = INT64_MAX;
  for (int bw = 1; bw <= kBoxRows; bw *= 2) {
    const int bh = kBoxRows / bw;
    const int64_t count = int64_t((t.width + bw - 1) / bw) * ((t.height + bh - 1) / bh);
    if (count * 1024 + bw + bh >= best) continue;
    best = count * 1024 + bw + bh;
    t.box_w = bw, t.box_h = bh;
  }
  t.tiles_w = (t.width + t.box_w - 1) / t.box_w;
  t.tiles_h = (t.height + t.box_h - 1) / t.box_h;
}

CUtensorMap boxes_map(const void* base, int64_t n, int h, int w, int c, const ConvTask& t) {
  const cuuint64_t row = cuuint64_t(c) * 2;
  return tiled_map(base, {cuuint64_t(c), cuuint64_t(w), cuuint64_t(h), cuuint64_t(n)},
                   {row, row * cuuint64_t(w), row * cuuint64_t(w) * cuuint64_t(h)},
                   {kPanelColumns, cuuint32_t(t.box_w), cuuint32_t(t.box_h), 1});
}

template <int kC>
void launch_hopper(const GradTask& g, dim3 grid) {
  const auto kernel = grad_wgmma_kernel<kC>;
  const size_t bytes = sizeof(GradShared<kC>) + 1024;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  launch({grid, kGradBlock, bytes}, kernel, g);
}

}  // namespace

void conv3d_weight_grad_bf16(const Tensor& dy, const Tensor& x, const ConvGeometry& geometry, Tensor& dw) {
  TensorCoreConv conv(x, geometry, {dw.dim(1), dw.dim(2), dw.dim(3)}, dy.shape());
  GradTask g;
  g.task = conv.task;
  ConvTask& t = g.task;
  cut_boxes(t);
  const bool hopper = has_wgmma();
  const int side_c = !hopper ? kMmaSide : t.c > 64 ? 128 : 64, side_co = hopper ? 128 : kMmaSide;
  const Tensor grads = is_aligned(dy.raw(), 16) ? dy : dy.clone();
  g.grads = pointer<__nv_bfloat16>(grads);
  g.boxes = t.batch * t.frames * t.tiles_w * t.tiles_h;
  g.tiles_co = (t.co + side_co - 1) / side_co;
  g.tiles_c = (t.c + side_c - 1) / side_c;
  const int64_t blocks = int64_t(g.tiles_co) * g.tiles_c * t.taps();
  // Two blocks for each processor, if their parts have work for a while.
  g.splits = int(std::clamp<int64_t>(2 * processors() / blocks, 1, std::max(1, g.boxes / 16)));
  const Tensor parts({g.splits, t.co, int64_t(t.taps()) * t.c}, DType::f32, Device::cuda);
  g.parts = parts.data<float>();
  const dim3 grid(unsigned(g.tiles_co * g.tiles_c), unsigned(t.taps()), unsigned(g.splits));
  if (hopper) {
    g.x = boxes_map(conv.frames.stores[0].raw(), conv.frames.stores[0].dim(0), t.x.height, t.x.width, t.c, t);
    g.dy = boxes_map(grads.raw(), int64_t(t.batch) * t.frames, t.height, t.width, t.co, t);
    if (side_c == 128)
      launch_hopper<128>(g, grid);
    else
      launch_hopper<64>(g, grid);
  } else {
    launch({grid, kMmaThreads}, grad_mma_kernel, g);
  }
  const Tensor sum({1, t.co, int64_t(t.taps()) * t.c}, DType::f32, Device::cuda);
  sum_to(sum, parts);
  dw.copy_from(sum.reshape(dw.shape()));
}

}  // namespace rivulet::cuda
