// What the tensor-core convolutions share: the description of one, how its output is cut into tiles, and what
// happens to a finished tile. Products live in conv_hopper.cu (wgmma) and conv_mma.cu (mma.sync).
#pragma once

#include "ops/conv_frames.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {

// Frames as kernels see them. Batch entries lie `step` places apart.
struct FramesView {
  __nv_bfloat16* store[2] = {};
  int height = 0, width = 0, c = 0, rim = 0, step = 0;
  Border border = Border::zeros;
  int16_t at[kMostFrames] = {};

  FramesView() = default;
  explicit FramesView(const Frames& f);
  __host__ __device__ explicit operator bool() const { return store[0] != nullptr || store[1] != nullptr; }
  // Element 0 of pixel (y, x), which may lie on the rim, of frame t of batch entry b.
  __device__ __nv_bfloat16* pixel(int b, int t, int y, int x) const {
    const int place = at[t];
    const int64_t frame = int64_t(place >= 0 ? place : -1 - place) + int64_t(b) * step;
    return store[place < 0] +
           ((frame * (height + 2 * rim) + y + rim) * (width + 2 * rim) + x + rim) * int64_t(c);
  }
  __device__ bool near_rim(int y, int x) const {
    return rim > 0 && border != Border::zeros && (y < 2 || x < 2 || y >= height - 2 || x >= width - 2);
  }
  // Whether the rim at i (-1 or n) repeats the inside at `from`.
  __device__ bool repeats(int i, int n, int from) const {
    const int inside = border == Border::reflect ? (i < 0 ? 1 : n - 2) : (i < 0 ? 0 : n - 1);
    return inside == from;
  }
  // f(y', x') for every place on the rim that repeats pixel (y, x); a rim is one pixel wide.
  template <class F>
  __device__ void each_copy(int y, int x, F&& f) const {
#pragma unroll 1
    for (int i = 0; i < 9; ++i) {
      const int ry = i / 3 == 0 ? y : i / 3 == 1 ? -1 : height, rx = i % 3 == 0 ? x : i % 3 == 1 ? -1 : width;
      if (i == 0 || (i / 3 > 0 && !repeats(ry, height, y)) || (i % 3 > 0 && !repeats(rx, width, x))) continue;
      f(ry, rx);
    }
  }
};

struct ConvTask {
  FramesView x, raw, normed;
  const __nv_bfloat16 *w = nullptr, *add = nullptr;
  const float* bias = nullptr;
  float* parts = nullptr;  // [splits, positions, co] where the sum over taps is cut
  FramesConv::Move move = FramesConv::Move::none;
  int st = 1, sh = 1, sw = 1, drop = 0;
  int batch = 1, frames = 0, height = 0, width = 0, co = 0;  // of y, before `move`
  int kt = 1, kh = 1, kw = 1, c = 0;
  int y0 = 0, x0 = 0;  // what tap 0 of output pixel (0, 0) reads, in coordinates of the store
  bool flipped = false;  // tap u takes the weights of the last tap but u
  int splits = 1;
  // A tile is `across` boxes on top of each other in each of `deep` frames; a box is [box_h, box_w] pixels, a
  // multiple of 8.
  int box_h = 8, box_w = 16, across = 1, deep = 1;
  int tiles_w = 0, tiles_h = 0, tiles_t = 0, tiles_n = 0;

  int taps() const { return kt * kh * kw; }
  int64_t positions() const { return int64_t(batch) * frames * height * width; }
  __host__ __device__ int boxes() const { return across * deep; }
  __host__ __device__ int box_rows() const { return box_h * box_w; }
  int tiles_m() const { return tiles_w * tiles_h * tiles_t; }
  // Chooses boxes for tiles of `rows` positions and `columns` channels, so that few rows are idle.
  void cut(int rows, int columns, bool even_boxes = false);

  struct Place {
    int b, t, y, x;
    bool valid;
  };
  // First pixel of tile m; t counts through the batch.
  __device__ void origin(int m, int& t, int& y, int& x) const {
    x = m % tiles_w * box_w;
    y = m / tiles_w % tiles_h * (box_h * across);
    t = m / (tiles_w * tiles_h) * deep;
  }
  // Row r of tile m.
  __device__ Place place(int m, int r) const {
    int t, y, x;
    origin(m, t, y, x);
    const int box = r / box_rows(), in = r - box * box_rows();
    t += box / across;
    y += box % across * box_h + in / box_w;
    x += in % box_w;
    const int b = t / frames;
    return {b, t - b * frames, y, x, box < boxes() && b < batch && y < height && x < width};
  }
  // Where channel n of output pixel p goes, and its channel there.
  __device__ int moved(Place& p, int n) const {
    if (move == FramesConv::Move::to_depth) {
      const int cell = (p.t % st * sh + p.y % sh) * sw + p.x % sw;
      p.t /= st, p.y /= sh, p.x /= sw;
      return cell * co + n;
    }
    if (move == FramesConv::Move::to_space) {
      const int c_out = co / (st * sh * sw), cell = n / c_out;
      p.t = p.t * st + cell / (sh * sw) - drop;
      p.y = p.y * sh + cell / sw % sh;
      p.x = p.x * sw + cell % sw;
      if (p.t < 0) p.valid = false;
      return n - cell * c_out;
    }
    return n;
  }
  // add's element: as raw and normed lie, dense.
  __device__ int64_t dense(const FramesView& like, const Place& p, int channel, int out_frames) const {
    return (((int64_t(p.b) * out_frames + p.t) * like.height + p.y) * like.width + p.x) * like.c + channel;
  }
  int out_frames = 0;
};

__device__ inline float silu(float x) {
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(0.5f * x));
  return 0.5f * x * (1 + t);
}
__device__ inline uint32_t two_bf16(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(v);
}
// Lane q of a quad gives a[j], its two of the eight values of group j, and gets all of group q.
__device__ inline uint4 quad_transpose(const uint32_t (&a)[4]) {
  const int q = int(threadIdx.x) % 4;
  const bool odd = q & 1, high = q & 2;
  // Between lanes q and q ^ 1: of each pair of groups, keep that of one's own parity.
  const uint32_t s0 = __shfl_xor_sync(0xffffffffu, odd ? a[0] : a[1], 1),
                 s1 = __shfl_xor_sync(0xffffffffu, odd ? a[2] : a[3], 1);
  // Groups (q & 1) and (q & 1) + 2 of the two lanes, in lane order.
  const uint32_t l0 = odd ? s0 : a[0], l1 = odd ? a[1] : s0, h0 = odd ? s1 : a[2], h1 = odd ? a[3] : s1;
  const uint32_t r0 = __shfl_xor_sync(0xffffffffu, high ? l0 : h0, 2),
                 r1 = __shfl_xor_sync(0xffffffffu, high ? l1 : h1, 2);
  return high ? make_uint4(r0, r1, h0, h1) : make_uint4(l0, l1, r0, r1);
}

// A warp's finished sums: 16 rows, kColumns columns from n0 on, in the layout of wgmma and mma.sync
// accumulators (d[4 j + 2 r + e] is column 8 j + 2 (lane % 4) + e of row lane / 4 + 8 r). `row0`: the warp's
// first row within tile m. With to_space, the columns of a tile belong to one cell.
template <int kColumns>
__device__ void store_sums(const ConvTask& task, float (&d)[kColumns / 2], int m, int row0, int n0,
                           int split) {
  const int lane = int(threadIdx.x) % 32, q = lane % 4, columns = task.co - n0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    ConvTask::Place to = task.place(m, row0 + lane / 4 + 8 * r);
    if (task.parts != nullptr) {
      if (!to.valid) continue;
      const int64_t position =
          ((int64_t(to.b) * task.frames + to.t) * task.height + to.y) * task.width + to.x;
      float* part = task.parts + (split * (int64_t(task.batch) * task.frames * task.height * task.width) +
                                  position) * task.co + n0 + 2 * q;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j)
        if (8 * j < columns)
          *reinterpret_cast<float2*>(part + 8 * j) = make_float2(d[4 * j + 2 * r], d[4 * j + 2 * r + 1]);
      continue;
    }
    const FramesView& like = task.raw ? task.raw : task.normed;
    const int channel = task.moved(to, n0);
    if (task.bias != nullptr) {
      const float* bias = task.bias + n0 + 2 * q;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j)
        if (8 * j < columns) {
          const float2 b = *reinterpret_cast<const float2*>(bias + 8 * j);
          d[4 * j + 2 * r] += b.x, d[4 * j + 2 * r + 1] += b.y;
        }
    }
    if (task.add != nullptr && to.valid) {
      const __nv_bfloat16* add = task.add + task.dense(like, to, channel + 2 * q, task.out_frames);
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j)
        if (8 * j < columns) {
          const float2 a = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(add + 8 * j));
          d[4 * j + 2 * r] += a.x, d[4 * j + 2 * r + 1] += a.y;
        }
    }
    const auto store = [&](const FramesView& view, auto&& value) {
      __nv_bfloat16* const out = view.pixel(to.b, to.valid ? to.t : 0, to.y, to.x) + channel + 8 * q;
#pragma unroll
      for (int g = 0; g < kColumns / 32; ++g) {
        uint32_t packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int i = 16 * g + 4 * j + 2 * r;
          packed[j] = two_bf16(value(d[i]), value(d[i + 1]));
        }
        const uint4 all = quad_transpose(packed);
        if (to.valid && 32 * g + 8 * q < columns) *reinterpret_cast<uint4*>(out + 32 * g) = all;
      }
      // The rim gets copies of what this thread has just written.
      if (to.valid && view.near_rim(to.y, to.x))
        view.each_copy(to.y, to.x, [&](int y, int x) {
          __nv_bfloat16* const rim = view.pixel(to.b, to.t, y, x) + channel + 8 * q;
#pragma unroll 1
          for (int g = 0; g < kColumns && g + 8 * q < columns; g += 32)
            *reinterpret_cast<uint4*>(rim + g) = *reinterpret_cast<const uint4*>(out + g);
        });
    };
    if (task.raw) store(task.raw, [](float v) { return v; });
    if (!task.normed) continue;
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
      squares += d[4 * j + 2 * r] * d[4 * j + 2 * r] + d[4 * j + 2 * r + 1] * d[4 * j + 2 * r + 1];
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    const float scale = rsqrtf(squares / float(task.normed.c) + 1e-8f);
    store(task.normed, [scale](float v) { return silu(v * scale); });
  }
}

// Products and stores of a task, in tiles of `columns` channels: by wgmma (64, 128 or 256), or by mma.sync (64 or
// 128). A tile that holds all channels of a pixel can write normed.
void conv_products_wgmma(const ConvTask& task, const Frames& x, const Tensor& w, int columns, int pair);
void conv_products_mma(const ConvTask& task, int columns);
inline int hopper_rows(int columns) { return columns == 256 ? 128 : 256; }
constexpr int kMmaTileRows = 128;
int processors();
// Cuts the task, runs it and what must follow.
void run_conv(ConvTask task, const Frames& x, const Tensor& w);

// A conv3d, whose x is copied where it cannot be read in place. What `task` still needs: w, bias and outputs.
struct TensorCoreConv {
  ConvTask task;
  Tensor source;  // x, or the copy
  Frames frames;
  TensorCoreConv(const Tensor& x, const ConvGeometry& g, const std::array<int64_t, 3>& kernel, const Shape& y);
};
void conv3d_bf16(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvGeometry& g, Tensor& y);
void conv3d_weight_grad_bf16(const Tensor& dy, const Tensor& x, const ConvGeometry& g, Tensor& dw);

}  // namespace rivulet::cuda
