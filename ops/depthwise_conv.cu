#include "ops/depthwise_conv.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kStrip = 8;  // pixels of a row that one thread computes, sliding its 3x3 window

struct Image {
  int height, width;
  int64_t c;
};

// The pack of N channels of pixel (y, x); zeros outside of the image.
template <class T, int N>
__device__ Pack<T, N> pixel(const T* image, const Image& im, int y, int x) {
  if (y < 0 || y >= im.height || x < 0 || x >= im.width) return Pack<T, N>{};
  return load_pack<T, N>(image + (int64_t(y) * im.width + x) * im.c);
}

// One thread: N channels of a strip. The flat index runs over channels, then strips of a row, then rows.
template <class T, int N>
__global__ void depthwise_kernel(const T* x, const T* taps, const T* bias, bool transposed, Image im,
                                 FastDiv groups, FastDiv strips, FastDiv rows, uint32_t count, T* y) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint32_t strip_row = groups.div(i), group = i - strip_row * groups.d;
  const uint32_t row = strips.div(strip_row), strip = strip_row - row * strips.d;
  const uint32_t image = rows.div(row);
  const int v = int(row - image * rows.d), x0 = int(strip) * kStrip, c0 = int(group) * N;
  const int64_t base = int64_t(image) * im.height * im.width * im.c + c0;
  Pack<T, N> w[9], window[3][3], bias_pack{};
#pragma unroll
  for (int u = 0; u < 9; ++u) w[u] = load_pack<T, N>(taps + (transposed ? 8 - u : u) * im.c + c0);
  if (bias != nullptr) bias_pack = load_pack<T, N>(bias + c0);
#pragma unroll
  for (int r = 0; r < 3; ++r) {
    window[r][1] = pixel<T, N>(x + base, im, v + r - 1, x0 - 1);
    window[r][2] = pixel<T, N>(x + base, im, v + r - 1, x0);
  }
#pragma unroll
  for (int p = 0; p < kStrip; ++p) {
    if (x0 + p >= im.width) return;
    Wide<T> sum[N];
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] = bias_pack.v[k];
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      window[r][0] = window[r][1];
      window[r][1] = window[r][2];
      window[r][2] = pixel<T, N>(x + base, im, v + r - 1, x0 + p + 1);
#pragma unroll
      for (int q = 0; q < 3; ++q)
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] += Wide<T>(w[r * 3 + q].v[k]) * Wide<T>(window[r][q].v[k]);
    }
    Pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.v[k] = convert<T>(sum[k]);
    store_pack(y + base + (int64_t(v) * im.width + x0 + p) * im.c, out);
  }
}

// parts [pieces, 9, C]: one thread sums N channels over the rows of one piece.
template <class T, int N>
__global__ void depthwise_tap_grad_kernel(const T* dy, const T* x, Image im, FastDiv groups, int64_t rows,
                                          int64_t rows_per_piece, uint32_t count, Wide<T>* parts) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint32_t piece = groups.div(i);
  const int c0 = int(i - piece * groups.d) * N;
  Wide<T> sum[9][N] = {};
  const int64_t last = min(rows, (piece + 1) * rows_per_piece);
  for (int64_t row = piece * rows_per_piece; row < last; ++row) {
    const int64_t base = row / im.height * im.height * im.width * im.c + c0;
    const int v = int(row % im.height);
    Pack<T, N> window[3][3];
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      window[r][1] = Pack<T, N>{};
      window[r][2] = pixel<T, N>(x + base, im, v + r - 1, 0);
    }
    for (int p = 0; p < im.width; ++p) {
      const auto g = load_pack<T, N>(dy + base + (int64_t(v) * im.width + p) * im.c);
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        window[r][0] = window[r][1];
        window[r][1] = window[r][2];
        window[r][2] = pixel<T, N>(x + base, im, v + r - 1, p + 1);
#pragma unroll
        for (int q = 0; q < 3; ++q)
#pragma unroll
          for (int k = 0; k < N; ++k)
            sum[r * 3 + q][k] += Wide<T>(g.v[k]) * Wide<T>(window[r][q].v[k]);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < 9; ++u)
#pragma unroll
    for (int k = 0; k < N; ++k) parts[(int64_t(piece) * 9 + u) * im.c + c0 + k] = sum[u][k];
}

Image image_of(const Tensor& x) { return {int(x.dim(1)), int(x.dim(2)), x.dim(3)}; }

template <class T>
int pack_of(const Tensor& a, const Tensor& b, const Tensor& c) {
  const bool packed = a.dim(-1) % kPack<T> == 0 && is_aligned(a.raw(), 16) && is_aligned(b.raw(), 16) &&
                      is_aligned(c.raw(), 16);
  return packed ? kPack<T> : 1;
}

}  // namespace

void depthwise_conv3x3(const Tensor& x, const Tensor& taps, const Tensor& bias, bool transposed, Tensor& y) {
  dispatch_float(x.dtype(), "depthwise_conv3x3", [&]<class T>() {
    const Image im = image_of(x);
    const bool bias_aligned = !bias || is_aligned(bias.raw(), 16);
    const int n = bias_aligned ? pack_of<T>(x, taps, y) : 1;
    const int64_t rows = x.dim(0) * im.height, strips = (im.width + kStrip - 1) / kStrip, groups = im.c / n,
                  count = rows * strips * groups;
    check(count <= 0x7fffffff, "depthwise_conv3x3: x of shape ", x.shape(), " is too large for one launch");
    launch({blocks_for(count, kThreads), kThreads},
           n == 1 ? depthwise_kernel<T, 1> : depthwise_kernel<T, kPack<T>>, pointer<T>(x), pointer<T>(taps),
           pointer<T>(bias), transposed, im, FastDiv(uint32_t(groups)), FastDiv(uint32_t(strips)),
           FastDiv(uint32_t(im.height)), count, pointer<T>(y));
  });
}

void depthwise_conv3x3_tap_grad(const Tensor& dy, const Tensor& x, Tensor& dtaps) {
  dispatch_float(x.dtype(), "depthwise_conv3x3", [&]<class T>() {
    const Image im = image_of(x);
    const int64_t rows = x.dim(0) * im.height;
    // As many pieces as keep a large GPU busy; a function of the shape alone, so that sums repeat.
    const int64_t wanted = std::max<int64_t>(1, (int64_t(1) << 18) / im.c);
    const int64_t rows_per_piece = std::max<int64_t>(1, rows / std::min(rows, wanted)),
                  pieces = (rows + rows_per_piece - 1) / rows_per_piece;
    const Tensor parts({pieces, 9, im.c}, accumulate_dtype(x.dtype()), x.device());
    const int n = pack_of<T>(x, dy, x);
    const int64_t groups = im.c / n, count = pieces * groups;
    launch({blocks_for(count, kThreads / 2), kThreads / 2},
           n == 1 ? depthwise_tap_grad_kernel<T, 1> : depthwise_tap_grad_kernel<T, kPack<T>>, pointer<T>(dy),
           pointer<T>(x), im, FastDiv(uint32_t(groups)), rows, rows_per_piece, count, pointer<Wide<T>>(parts));
    dtaps.copy_from(rivulet::sum_to(parts, {1, 9, im.c}).select(0, 0));
  });
}

}  // namespace rivulet::cuda
