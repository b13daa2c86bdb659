#include "ops/depthwise_tile.cuh"

#include "tensor/cuda.cuh"

// A block has 64 channels of each half and a strip of 8 image columns in all rows, with the columns beside
// it. Everything is activated once on its way into shared memory. Then each warp goes down one column, every
// lane with two channels of each half, and adds each row to the three outputs that see it.
namespace rivulet::cuda {
namespace {

constexpr int kChannels = 64, kStrip = 8, kTileThreads = 256;
constexpr int kPixel = 2 * kChannels;  // elements of a pixel in the tile: a, then b
constexpr int kChunks = kPixel / 8;    // of 16 bytes
constexpr int kWide = kStrip + 2;      // columns of the tile
constexpr int kInFlight = 7;           // chunks that a thread loads at once

struct Planes {
  int height, width;
  int64_t c;  // 2C
};

template <bool kSilu>
__device__ uint4 activated(uint4 v) {
  if constexpr (kSilu) {
    auto* pair = reinterpret_cast<__nv_bfloat162*>(&v);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 f = __bfloat1622float2(pair[i]);
      pair[i] = __floats2bfloat162_rn(fast_silu(f.x), fast_silu(f.y));
    }
  }
  return v;
}

// tile [height][kWide][kPixel].
template <bool kSilu>
__device__ void load_tile(const __nv_bfloat16* image, const Planes& im, int x0, int c0, __nv_bfloat16* tile) {
  const int count = im.height * kWide * kChunks;
  for (int first = threadIdx.x; first < count; first += kInFlight * kTileThreads) {
    uint4 v[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = first + j * kTileThreads, chunk = i % kChunks, pixel = i / kChunks;
      const int row = pixel / kWide, x = x0 + pixel % kWide - 1;
      v[j] = make_uint4(0, 0, 0, 0);
      if (i < count && x >= 0 && x < im.width) {
        const int64_t c = chunk < kChunks / 2 ? c0 + chunk * 8 : im.c / 2 + c0 + (chunk - kChunks / 2) * 8;
        v[j] = *reinterpret_cast<const uint4*>(image + (int64_t(row) * im.width + x) * im.c + c);
      }
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = first + j * kTileThreads;
      if (i < count) reinterpret_cast<uint4*>(tile)[i] = activated<kSilu>(v[j]);
    }
  }
}

// y, or with kBackward the gradient of what goes into the gate, dm [.., 2C].
template <bool kSilu, bool kBackward>
__global__ void __launch_bounds__(kTileThreads, 3)
    depthwise_tile_kernel(const __nv_bfloat16* x, const __nv_bfloat16* w, const __nv_bfloat16* bias,
                          const __nv_bfloat16* dy, Planes im, __nv_bfloat16* y) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* tile = reinterpret_cast<__nv_bfloat16*>(shared);
  const int c0 = blockIdx.x * kChannels, x0 = blockIdx.y * kStrip;
  const int64_t pixels = int64_t(im.height) * im.width, half = im.c / 2;
  load_tile<kSilu>(x + blockIdx.z * pixels * im.c, im, x0, c0, tile);

  const int lane = threadIdx.x % 32, column = threadIdx.x / 32, c = c0 + 2 * lane;
  float filter[4][9], add[4];  // channels c and c + 1 of a, then of b
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t channel = (k < 2 ? 0 : half) + c + k % 2;
    add[k] = __bfloat162float(bias[channel]);
#pragma unroll
    for (int u = 0; u < 9; ++u) filter[k][u] = __bfloat162float(w[channel * 9 + u]);
  }
  __syncthreads();
  if (x0 + column >= im.width) return;

  const int64_t place = blockIdx.z * pixels + x0 + column;
  float above[4], own[4], below[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) above[k] = own[k] = add[k];
  const auto finish = [&](int row, const float(&m)[4]) {
    const int64_t pixel = place + int64_t(row) * im.width;
    if constexpr (kBackward) {
      const float2 d = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(dy + pixel * half + c));
      const Silu f(m[2]), g(m[3]);
      auto* to = reinterpret_cast<__nv_bfloat162*>(y + pixel * im.c + c);
      to[0] = __floats2bfloat162_rn(d.x * f.value, d.y * g.value);
      to[half / 2] = __floats2bfloat162_rn(d.x * m[0] * f.slope, d.y * m[1] * g.slope);
    } else {
      *reinterpret_cast<__nv_bfloat162*>(y + pixel * half + c) =
          __floats2bfloat162_rn(m[0] * fast_silu(m[2]), m[1] * fast_silu(m[3]));
    }
  };
#pragma unroll 2
  for (int row = 0; row < im.height; ++row) {
    const __nv_bfloat16* at = tile + (row * kWide + column) * kPixel + 2 * lane;
#pragma unroll
    for (int k = 0; k < 4; ++k) below[k] = add[k];
#pragma unroll
    for (int q = 0; q < 3; ++q) {
      const float2 a = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(at + q * kPixel));
      const float2 b =
          __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(at + q * kPixel + kChannels));
      const float v[4] = {a.x, a.y, b.x, b.y};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        above[k] += filter[k][6 + q] * v[k];
        own[k] += filter[k][3 + q] * v[k];
        below[k] += filter[k][q] * v[k];
      }
    }
    if (row > 0) finish(row - 1, above);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      above[k] = own[k];
      own[k] = below[k];
    }
  }
  finish(im.height - 1, above);
}

template <bool kBackward>
bool run_tiled(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& dy, bool silu_first,
               const Tensor& out) {
  const int64_t height = x.dim(1), width = x.dim(2), shared = height * kWide * kPixel * 2;
  if (!depthwise_tiles(x, kPixel, shared) || !is_aligned(out.raw(), 4) || !is_aligned(dy.raw(), 4))
    return false;
  const auto kernel =
      silu_first ? depthwise_tile_kernel<true, kBackward> : depthwise_tile_kernel<false, kBackward>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMostTileShared)));
  const dim3 grid(unsigned(x.dim(3) / kPixel), blocks_for(width, kStrip), unsigned(x.dim(0)));
  launch({grid, kTileThreads, size_t(shared)}, kernel, pointer<__nv_bfloat16>(x), pointer<__nv_bfloat16>(w),
         pointer<__nv_bfloat16>(bias), pointer<__nv_bfloat16>(dy), Planes{int(height), int(width), x.dim(3)},
         pointer<__nv_bfloat16>(out));
  return true;
}

}  // namespace

bool depthwise_glu_tiled(const Tensor& x, const Tensor& w, const Tensor& bias, bool silu_first, Tensor& y) {
  return run_tiled<false>(x, w, bias, y, silu_first, y);
}
bool depthwise_gate_tiled(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& bias,
                          bool silu_first, const Tensor& dm) {
  return run_tiled<true>(x, w, bias, dy, silu_first, dm);
}

}  // namespace rivulet::cuda
