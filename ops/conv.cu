#include "ops/conv_task.cuh"
#include "ops/tile.cuh"

// Implicit matrix products: the patches are gathered tile by tile, tap by tap, and never stored.
namespace rivulet::cuda {
namespace {

// Links output positions, numbered over [B, To, Ho, Wo], to input positions.
struct ConvMap {
  static constexpr int64_t kZeros = INT64_MIN;  // instead of a place in x
  int in[3], kernel[3], stride[3], before[3];
  Border border[3];
  bool transposed;
  int left = 0;                           // frames that stand before x ...
  int64_t left_at[kMostLeftFrames] = {};  // ... and how far each lies from x, in elements
  FastDiv out[3];
  uint32_t positions;
  int c, co;

  ConvMap(const Tensor& x, const Tensor& w, const ConvGeometry& g, const Tensor& y)
      : transposed(g.transposed),
        positions(uint32_t(y.numel() / y.dim(4))),
        c(int(x.dim(4))),
        co(int(y.dim(4))) {
    check(y.numel() / y.dim(4) <= 0x7fffffff, "conv: y of shape ", y.shape(), " has too many positions");
    for (int i = 0; i < 3; ++i) {
      in[i] = int(x.dim(i + 1));
      out[i] = FastDiv(uint32_t(y.dim(i + 1)));
      kernel[i] = int(w.dim(i + 1));
      stride[i] = int(g.stride[i]);
      before[i] = int(g.before[i]);
      border[i] = g.border[i];
    }
    for (const Tensor& frame : g.left)
      left_at[left++] = (static_cast<char*>(frame.raw()) - static_cast<char*>(x.raw())) / size_of(x.dtype());
  }
  int taps() const { return kernel[0] * kernel[1] * kernel[2]; }

  // Where tap u of output position o reads along dim i; -1 for a zero.
  __device__ int along(int i, int o, int u) const {
    int at = o * stride[i] + u - before[i];
    if (transposed) {
      at = o + before[i] - u;
      if (at % stride[i] != 0) return -1;
      at /= stride[i];
    }
    if (at >= 0 && at < in[i]) return at;
    if (border[i] == Border::reflect) return at < 0 ? -at : 2 * (in[i] - 1) - at;
    if (border[i] == Border::replicate) return at < 0 ? 0 : in[i] - 1;
    return -1;
  }
  // The first channel that tap `tap` of output position o reads, counted from the start of x.
  __device__ int64_t source(uint32_t o, int tap) const {
    if (o >= positions) return kZeros;
    const uint32_t row = out[2].div(o), image = out[1].div(row), b = out[0].div(image);
    const int x = along(2, int(o - row * out[2].d), tap % kernel[2]);
    const int y = along(1, int(row - image * out[1].d), tap / kernel[2] % kernel[1]);
    const int ot = int(image - b * out[0].d), kt = tap / kernel[2] / kernel[1];
    if (x < 0 || y < 0) return kZeros;
    const int from_left = ot * stride[0] + kt;
    if (from_left < left) return left_at[from_left] + ((int64_t(b) * in[1] + y) * in[2] + x) * c;
    const int t = along(0, ot, kt);
    if (t < 0) return kZeros;
    return (((int64_t(b) * in[0] + t) * in[1] + y) * in[2] + x) * c;
  }
};

// Rows are output positions, the depth the channels that one tap reads.
template <class T>
struct GatheredRows {
  static constexpr bool dense_depth = true;
  const T* x;
  const int64_t* source;
  int depth;
  __device__ T operator()(int row, int k) const {
    return k < depth && source[row] != ConvMap::kZeros ? x[source[row] + k] : T(0);
  }
};

// The other way round: rows are channels first .., the depth is output positions o ...
template <class T>
struct GatheredDepth {
  static constexpr bool dense_depth = false;
  const T* x;
  const ConvMap& map;
  int tap, first;
  uint32_t o, last;
  __device__ T operator()(int row, int k) const {
    if (first + row >= map.c || o + k >= last) return T(0);
    const int64_t at = map.source(o + k, tap);
    return at == ConvMap::kZeros ? T(0) : x[at + first + row];
  }
};

template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    conv_kernel(const __grid_constant__ ConvMap map, int taps, const T* x, const T* w, const T* bias, T* y) {
  __shared__ int64_t source[kSize];
  const uint32_t o0 = blockIdx.x * kSize;
  const int co0 = int(blockIdx.y) * kSize;
  T acc[kSize / 8][kSize / 8] = {};
  for (int tap = 0; tap < taps; ++tap) {
    __syncthreads();  // the sources of the tap before have been read
    if (threadIdx.x < kSize) source[threadIdx.x] = map.source(o0 + threadIdx.x, tap);
    __syncthreads();
    tile_product<T, kSize>(
        map.c, GatheredRows<T>{x, source, map.c},
        Operand<T, true>{w + (int64_t(co0) * taps + tap) * map.c, int64_t(taps) * map.c, map.co - co0, map.c},
        acc);
  }
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (o0 + i >= map.positions || co0 + j >= map.co) return;
    y[int64_t(o0 + i) * map.co + co0 + j] = bias != nullptr ? value + bias[co0 + j] : value;
  });
}

// parts [parts, Co, taps, C]: blockIdx.y is the tap, blockIdx.z the part of the output positions.
template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    conv_weight_grad_kernel(const __grid_constant__ ConvMap map, int taps, uint32_t per_part, const T* dy,
                            const T* x, T* parts) {
  const int tiles = (map.c + kSize - 1) / kSize, co0 = int(blockIdx.x) / tiles * kSize,
            c0 = int(blockIdx.x) % tiles * kSize, tap = int(blockIdx.y);
  const uint32_t o0 = blockIdx.z * per_part, left = map.positions - o0;
  const int depth = int(left < per_part ? left : per_part);
  T acc[kSize / 8][kSize / 8] = {};
  tile_product<T, kSize>(depth,
                         Operand<T, false>{dy + int64_t(o0) * map.co + co0, map.co, map.co - co0, depth},
                         GatheredDepth<T>{x, map, tap, c0, o0, o0 + uint32_t(depth)}, acc);
  T* out = parts + int64_t(blockIdx.z) * map.co * taps * map.c;
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (co0 + i < map.co && c0 + j < map.c) out[(int64_t(co0 + i) * taps + tap) * map.c + c0 + j] = value;
  });
}

}  // namespace

void conv3d(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvGeometry& geometry, Tensor& y) {
  if (x.dtype() == DType::bf16) return conv3d_bf16(x, w, bias, geometry, y);
  dispatch_real(x.dtype(), "conv", [&]<class U>() {
    const ConvMap map(x, w, geometry, y);
    dispatch_tile<U>(map.co, [&]<class T, int kSize>() {
      launch({dim3(blocks_for(map.positions, kSize), blocks_for(map.co, kSize)), kTileThreads},
             conv_kernel<T, kSize>, map, map.taps(), x.data<T>(), w.data<T>(), pointer<T>(bias), y.data<T>());
    });
  });
}

void conv3d_weight_grad(const Tensor& dy, const Tensor& x, const ConvGeometry& geometry, Tensor& dw) {
  if (x.dtype() == DType::bf16) return conv3d_weight_grad_bf16(dy, x, geometry, dw);
  dispatch_real(x.dtype(), "conv", [&]<class U>() {
    const ConvMap map(x, dw, geometry, dy);
    dispatch_tile<U>(std::min(map.c, map.co), [&]<class T, int kSize>() {
      const unsigned tiles = blocks_for(map.co, kSize) * blocks_for(map.c, kSize);
      // Few weights: the positions are cut into parts, whose sums are added up in order.
      const int64_t wanted =
          std::clamp<int64_t>(1024 / (int64_t(tiles) * map.taps()), 1, (int64_t(map.positions) + 255) / 256);
      const int64_t per_part = (int64_t(map.positions) + wanted - 1) / wanted,
                    count = (int64_t(map.positions) + per_part - 1) / per_part;
      const Tensor parts({count, map.co, map.taps() * map.c}, x.dtype(), x.device());
      launch({dim3(tiles, unsigned(map.taps()), unsigned(count)), kTileThreads},
             conv_weight_grad_kernel<T, kSize>, map, map.taps(), per_part, dy.data<T>(), x.data<T>(),
             parts.data<T>());
      sum_to(dw.reshape({1, map.co, map.taps() * map.c}), parts);
    });
  });
}

}  // namespace rivulet::cuda
