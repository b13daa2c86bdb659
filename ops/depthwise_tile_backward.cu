#include "ops/depthwise_tile.cuh"

// A block has 64 channels and a strip of 8 image columns in all rows. The gradient dm of the strip and of the
// columns beside it lies in shared memory. Each warp goes down one column, every lane with two channels: a
// pixel's dx gathers dm around it, and the filters' gradient gathers the pixel times the same.
namespace rivulet::cuda {
namespace {

constexpr int kChannels = 64, kStrip = 8, kTileThreads = 32 * kStrip;
constexpr int kChunks = kChannels / 8;  // of 16 bytes
constexpr int kWide = kStrip + 2;       // columns of the tile
constexpr int kInFlight = 7;            // chunks that a thread loads at once
constexpr int kAhead = 4;               // rows of x on their way
constexpr int kSums = 10;               // of a channel: nine taps and the bias

struct Planes {
  int height, width;
  int64_t c;
};

// tile [height][kWide][kChannels]
__device__ void load_tile(const __nv_bfloat16* image, const Planes& im, int x0, __nv_bfloat16* tile) {
  const int count = im.height * kWide * kChunks;
  for (int first = threadIdx.x; first < count; first += kInFlight * kTileThreads) {
    uint4 v[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = first + j * kTileThreads, chunk = i % kChunks, pixel = i / kChunks;
      const int row = pixel / kWide, x = x0 + pixel % kWide - 1;
      v[j] = i < count && x >= 0 && x < im.width
                 ? *reinterpret_cast<const uint4*>(image + (int64_t(row) * im.width + x) * im.c + chunk * 8)
                 : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = first + j * kTileThreads;
      if (i < count) reinterpret_cast<uint4*>(tile)[i] = v[j];
    }
  }
}

// parts [images * strips, C, kSums]
template <bool kSilu>
__global__ void __launch_bounds__(kTileThreads, 2)
    depthwise_tile_backward_kernel(const __nv_bfloat16* dm, const __nv_bfloat16* x, const __nv_bfloat16* w,
                                   Planes im, __nv_bfloat16* dx, float* parts) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* tile = reinterpret_cast<__nv_bfloat16*>(shared);
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32, c0 = blockIdx.x * kChannels,
            c = c0 + 2 * lane;
  const int x0 = blockIdx.y * kStrip;
  const int64_t image = int64_t(blockIdx.z) * im.height * im.width, row_step = im.width * im.c;
  load_tile(dm + image * im.c + c0, im, x0, tile);
  float f[9][2], df[kSums][2] = {};
#pragma unroll
  for (int u = 0; u < 9; ++u)
#pragma unroll
    for (int k = 0; k < 2; ++k) f[u][k] = __bfloat162float(w[(c + k) * 9 + u]);
  __syncthreads();
  if (x0 + column < im.width) {
    const int64_t at = (image + x0 + column) * im.c + c;
    // window[p]: dm of three columns in the row p - 1 from here.
    float2 window[3][3] = {};
    const auto load_row = [&](int row, float2(&to)[3]) {
#pragma unroll
      for (int t = 0; t < 3; ++t)
        to[t] = row < im.height ? __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(
                                      tile + (row * kWide + column + t) * kChannels + 2 * lane))
                                : float2{};
    };
    load_row(0, window[1]);
    __nv_bfloat162 ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i < im.height) ahead[i] = *reinterpret_cast<const __nv_bfloat162*>(x + at + i * row_step);
    const auto step = [&]<int kSlot>(int row) {
      const float2 v = __bfloat1622float2(ahead[kSlot]);
      if (row + kAhead < im.height)
        ahead[kSlot] = *reinterpret_cast<const __nv_bfloat162*>(x + at + (row + kAhead) * row_step);
      load_row(row + 1, window[2]);
      float2 s = v, slope{1, 1}, sum{};
      if constexpr (kSilu) {
        const Silu a(v.x), b(v.y);
        s = {a.value, b.value};
        slope = {a.slope, b.slope};
      }
#pragma unroll
      for (int p = 0; p < 3; ++p)
#pragma unroll
        for (int t = 0; t < 3; ++t) {
          // The output at (p - 1, t - 1) from here reads this pixel through the tap on the other side.
          const float2 d = window[p][t];
          const int u = (2 - p) * 3 + 2 - t;
          sum.x += f[u][0] * d.x, sum.y += f[u][1] * d.y;
          df[u][0] += s.x * d.x, df[u][1] += s.y * d.y;
        }
      df[9][0] += window[1][1].x, df[9][1] += window[1][1].y;
      *reinterpret_cast<__nv_bfloat162*>(dx + at + row * row_step) =
          __floats2bfloat162_rn(slope.x * sum.x, slope.y * sum.y);
#pragma unroll
      for (int t = 0; t < 3; ++t) window[0][t] = window[1][t], window[1][t] = window[2][t];
    };
    int row = 0;
    for (; row + kAhead <= im.height; row += kAhead) {
      step.template operator()<0>(row);
      step.template operator()<1>(row + 1);
      step.template operator()<2>(row + 2);
      step.template operator()<3>(row + 3);
    }
    if (row < im.height) step.template operator()<0>(row);
    if (row + 1 < im.height) step.template operator()<1>(row + 1);
    if (row + 2 < im.height) step.template operator()<2>(row + 2);
  }
  static_assert(kAhead == 4);
  __syncthreads();                                 // the tile makes room for the sums of the columns
  float* sums = reinterpret_cast<float*>(shared);  // [kStrip][kSums][kChannels]
#pragma unroll
  for (int u = 0; u < kSums; ++u)
    *reinterpret_cast<float2*>(sums + (column * kSums + u) * kChannels + 2 * lane) = {df[u][0], df[u][1]};
  __syncthreads();
  float* to = parts + (int64_t(blockIdx.z * gridDim.y + blockIdx.y) * im.c + c0) * kSums;
  for (int i = threadIdx.x; i < kSums * kChannels; i += kTileThreads) {
    const int channel = i / kSums, u = i % kSums;
    float total = 0;
#pragma unroll
    for (int j = 0; j < kStrip; ++j) total += sums[(j * kSums + u) * kChannels + channel];
    to[i] = total;
  }
}

}  // namespace

bool depthwise_backward_tiled(const Tensor& dm, const Tensor& x, const Tensor& w, bool silu_first,
                              const Tensor& dx, const Tensor& dw, const Tensor& dbias) {
  const int64_t height = x.dim(1), width = x.dim(2), c = x.dim(3);
  const int64_t shared = std::max<int64_t>(height * kWide * kChannels * 2, kStrip * kSums * kChannels * 4);
  if (!depthwise_tiles(x, kChannels, shared) || !is_aligned(dm.raw(), 16) || !is_aligned(dx.raw(), 4))
    return false;
  const auto kernel =
      silu_first ? depthwise_tile_backward_kernel<true> : depthwise_tile_backward_kernel<false>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMostTileShared)));
  const dim3 grid(unsigned(c / kChannels), blocks_for(width, kStrip), unsigned(x.dim(0)));
  const Tensor parts({x.dim(0) * grid.y, c, kSums}, DType::f32, Device::cuda);
  launch({grid, kTileThreads, size_t(shared)}, kernel, pointer<__nv_bfloat16>(dm), pointer<__nv_bfloat16>(x),
         pointer<__nv_bfloat16>(w), Planes{int(height), int(width), c}, pointer<__nv_bfloat16>(dx),
         parts.data<float>());
  const Tensor sums = rivulet::sum_to(parts, {1, c, kSums}).select(0, 0);
  dw.copy_from(sums.slice(1, 0, 9));
  dbias.copy_from(sums.select(1, 9));
  return true;
}

}  // namespace rivulet::cuda
