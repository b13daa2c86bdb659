#include "ops/conv_task.cuh"
#include "ops/frame_moves.h"

namespace rivulet::cuda {
namespace {

struct Grid {
  int frames, height, width;
  __device__ ConvTask::Place place(int64_t row) const {
    const int x = int(row % width), y = int(row / width % height), t = int(row / width / height);
    return {0, t, y, x, t < frames};
  }
  int64_t pixels() const { return int64_t(frames) * height * width; }
};

__device__ float unit(float v) { return v; }
__device__ float unit(uint8_t v) { return float(v) * (1 / 127.5f) - 1; }
__device__ void to_pixel(float v, float& to) { to = v; }
__device__ void to_pixel(float v, uint8_t& to) { to = uint8_t(fminf(fmaxf(127.5f * v + 127.5f, 0.f), 255.f)); }

// A thread per 8 channels of a patch.
template <class T>
__global__ void __launch_bounds__(kThreads)
    patch_kernel(const T* pixels, int p, Grid grid, const __grid_constant__ FramesView to) {
  const int packs = to.c / 8;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const ConvTask::Place at = grid.place(i / packs);
  if (!at.valid) return;
  const int first = int(i % packs) * 8;
  Pack<__nv_bfloat16, 8> out;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int channel = first + e, dy = channel % p, dx = channel / p % p, c = channel / p / p;
    const int64_t row = int64_t(at.t) * grid.height * p + at.y * p + dy;
    out.v[e] = __float2bfloat16(unit(pixels[(row * grid.width * p + at.x * p + dx) * 3 + c]));
  }
  store_pack(to.pixel(0, at.t, at.y, at.x) + first, out);
  if (to.near_rim(at.y, at.x))
    to.each_copy(at.y, at.x, [&](int y, int x) { store_pack(to.pixel(0, at.t, y, x) + first, out); });
}

// A thread per pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    unpatch_kernel(const __grid_constant__ FramesView x, int p, Grid grid, T* pixels) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const ConvTask::Place at = grid.place(i);
  if (!at.valid) return;
  const __nv_bfloat16* from = x.pixel(0, at.t, at.y / p, at.x / p) + at.x % p * p + at.y % p;
#pragma unroll
  for (int c = 0; c < 3; ++c) to_pixel(__bfloat162float(from[c * p * p]), pixels[i * 3 + c]);
}

// A warp per pixel of out.
constexpr int kSkipWarps = 8;

__global__ void __launch_bounds__(32 * kSkipWarps)
    to_depth_kernel(const __grid_constant__ FramesView x, const int* position, int st, int sh, int sw, Grid grid,
                    int c_out, __nv_bfloat16* out) {
  const int64_t row = int64_t(blockIdx.x) * kSkipWarps + threadIdx.y;
  const ConvTask::Place at = grid.place(row);
  if (!at.valid) return;
  const int cells = st * sh * sw, group = x.c * cells / c_out, n = c_out / cells;
  for (int p = int(threadIdx.x); p < c_out; p += 32) {
    const int o = p % n * cells + p / n;
    float sum = 0;
    for (int k = 0; k < group; ++k) {
      const int i = o * group + k, cell = i % cells, dt = cell / (sh * sw), dy = cell / sw % sh, dx = cell % sw;
      sum += __bfloat162float(
          x.pixel(0, at.t * st + dt, at.y * sh + dy, at.x * sw + dx)[position[i / cells]]);
    }
    out[row * c_out + p] = __float2bfloat16(sum / float(group));
  }
}

// A warp per pixel of x; a lane has one channel of all cells.
template <int kCells>
__global__ void __launch_bounds__(32 * kSkipWarps)
    to_space_kernel(const __grid_constant__ FramesView x, int sh, int sw, int drop, Grid grid, int c_out,
                    __nv_bfloat16* out) {
  const int64_t row = int64_t(blockIdx.x) * kSkipWarps + threadIdx.y;
  const ConvTask::Place at = grid.place(row);
  if (!at.valid) return;
  const int channels = x.c / kCells, st = kCells / (sh * sw);
  const __nv_bfloat16* from = x.pixel(0, at.t, at.y, at.x);
  for (int c = int(threadIdx.x); c < channels; c += 32) {
    const auto values = load_pack<__nv_bfloat16, kCells>(from + c * kCells);
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell) {
      const int t = at.t * st + cell / (sh * sw) - drop, y = at.y * sh + cell / sw % sh, px = at.x * sw + cell % sw;
      if (t < 0) continue;
      __nv_bfloat16* to = out + ((int64_t(t) * grid.height * sh + y) * grid.width * sw + px) * c_out;
      for (int o = c; o < c_out; o += channels) to[o] = values.v[cell];
    }
  }
}

}  // namespace

void patch_frames(const Tensor& pixels, int64_t p, const Frames& to) {
  const Grid grid{int(to.count()), int(to.height()), int(to.width())};
  const unsigned blocks = blocks_for(grid.pixels() * (to.channels() / 8), kThreads);
  const FramesView view(to);
  if (pixels.dtype() == DType::u8)
    launch({blocks, kThreads}, patch_kernel<uint8_t>, pixels.data<uint8_t>(), int(p), grid, view);
  else
    launch({blocks, kThreads}, patch_kernel<float>, pixels.data<float>(), int(p), grid, view);
}

void unpatch_frames(const Frames& x, int64_t p, const Tensor& pixels) {
  const Grid grid{int(x.count()), int(x.height() * p), int(x.width() * p)};
  const unsigned blocks = blocks_for(grid.pixels(), kThreads);
  const FramesView view(x);
  if (pixels.dtype() == DType::u8)
    launch({blocks, kThreads}, unpatch_kernel<uint8_t>, view, int(p), grid, pixels.data<uint8_t>());
  else
    launch({blocks, kThreads}, unpatch_kernel<float>, view, int(p), grid, pixels.data<float>());
}

void skip_to_depth(const Frames& x, const Tensor& position, const BlockSize& block, const Tensor& out) {
  const Grid grid{int(out.dim(0)), int(out.dim(1)), int(out.dim(2))};
  launch({blocks_for(grid.pixels(), kSkipWarps), dim3(32, kSkipWarps)}, to_depth_kernel, FramesView(x),
         position.data<int32_t>(), int(block[0]), int(block[1]), int(block[2]), grid, int(out.dim(3)),
         pointer<__nv_bfloat16>(out));
}

void skip_to_space(const Frames& x, const BlockSize& block, int64_t drop, const Tensor& out) {
  const Grid grid{int(x.count()), int(x.height()), int(x.width())};
  const int64_t cells = block[0] * block[1] * block[2];
  const auto kernel = cells == 8   ? to_space_kernel<8>
                      : cells == 4 ? to_space_kernel<4>
                      : cells == 2 ? to_space_kernel<2>
                                   : to_space_kernel<1>;
  launch({blocks_for(grid.pixels(), kSkipWarps), dim3(32, kSkipWarps)}, kernel, FramesView(x), int(block[1]),
         int(block[2]), int(drop), grid, int(out.dim(3)), pointer<__nv_bfloat16>(out));
}

}  // namespace rivulet::cuda
