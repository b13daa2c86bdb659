#include "ops/depthwise_glu.h"

#include "ops/depthwise_tile.cuh"
#include "ops/math.cuh"
#include "tensor/cuda.cuh"

// One thread has N neighbouring channels of a band of R image rows and goes along it from left to right: every
// pixel it meets is read and activated once and added to the outputs of the three columns that see it.
namespace rivulet::cuda {
namespace {

constexpr int kBand = 4;  // image rows of a thread
constexpr unsigned kBandThreads = 128;
// Blocks that a multiprocessor shall hold: what keeps enough loads in flight, and the registers below that.
template <class T>
constexpr int kResident = sizeof(T) == 8 ? 1 : 3;

struct Plane {
  int height, width;
  int64_t c;  // channels of a pixel
};

template <class W, int R, int N>
struct Column {
  W v[R][N];
};

// Rows top, top + 1, ... of one image column, `at` pointing at its channels in row 0; zeros outside.
template <class T, int R, int N>
__device__ void load_column(const T* at, const Plane& im, int top, int x, Pack<T, N> (&out)[R]) {
  const bool inside = x >= 0 && x < im.width;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int y = top + r;
    out[r] = inside && y >= 0 && y < im.height ? load_pack<T, N>(at + (int64_t(y) * im.width + x) * im.c)
                                               : Pack<T, N>{};
  }
}

// w[c * 9 + tap] of N channels from c on.
template <class T, int N>
__device__ void load_filters(const T* w, int64_t c, Wide<T> (&out)[9][N]) {
#pragma unroll
  for (int k = 0; k < N; ++k)
#pragma unroll
    for (int u = 0; u < 9; ++u) out[u][k] = w[(c + k) * 9 + u];
}

// Where a thread works: its channels, its band and its image.
struct Place {
  uint32_t group, band, image;
  __device__ Place(uint32_t i, const FastDiv& groups, const FastDiv& bands) {
    const uint32_t rest = groups.div(i);
    group = i - rest * groups.d;
    image = bands.div(rest);
    band = rest - image * bands.d;
  }
};

// The convolution of one set of channels, column by column. add<K>() puts an activated column into the outputs
// of its left neighbour, itself and its right neighbour, which lie in slots K - 1, K and K + 1 of three.
template <class T, int R, int N>
struct Mixer {
  using W = Wide<T>;
  W w[9][N], bias[N], sums[3][R][N];
  __device__ void start() {
#pragma unroll
    for (int s = 0; s < 3; ++s)
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int k = 0; k < N; ++k) sums[s][r][k] = bias[k];
  }
  template <int K, bool kSilu>
  __device__ void add(const Pack<T, N> (&column)[R + 2]) {
#pragma unroll
    for (int i = 0; i < R + 2; ++i)
#pragma unroll
      for (int k = 0; k < N; ++k) {
        W v = column[i].v[k];
        if (kSilu) v = silu_of(v);
#pragma unroll
        for (int q = 0; q < 3; ++q) {
          // Tap column q of the output q - 1 to the left of this column.
          W(&to)[R][N] = sums[(K + 4 - q) % 3];
#pragma unroll
          for (int p = 0; p < 3; ++p)
            if (i - p >= 0 && i - p < R) to[i - p][k] += w[p * 3 + q][k] * v;
        }
      }
  }
};

// y, or with kBackward the gradient of what goes into the gate, dm [.., 2C].
template <class T, int R, int N, bool kSilu, bool kBackward>
__global__ void __launch_bounds__(128, kResident<T>) depthwise_glu_kernel(const T* x, const T* w, const T* bias, const T* dy,
                                                            Plane im, FastDiv groups, FastDiv bands,
                                                            uint32_t count, T* out) {
  using W = Wide<T>;
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Place place(i, groups, bands);
  const int64_t half = im.c / 2, c0 = int64_t(place.group) * N, pixels = int64_t(im.height) * im.width;
  const int top = int(place.band) * R;
  const T *from_a = x + place.image * pixels * im.c + c0, *from_b = from_a + half;
  Mixer<T, R, N> a, b;
  load_filters(w, c0, a.w);
  load_filters(w, c0 + half, b.w);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    a.bias[k] = bias[c0 + k];
    b.bias[k] = bias[c0 + half + k];
  }
  a.start();
  b.start();
  Pack<T, N> column_a[R + 2], column_b[R + 2];
  load_column(from_a, im, top - 1, 0, column_a);
  load_column(from_b, im, top - 1, 0, column_b);

  // Output column q is complete once column q + 1 has been added.
  const auto finish = [&](int q, W(&sum_a)[R][N], W(&sum_b)[R][N]) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int64_t pixel = place.image * pixels + int64_t(top + r) * im.width + q;
      if (top + r < im.height) {
        if constexpr (kBackward) {
          const auto up = load_pack<T, N>(dy + pixel * half + c0);
          Pack<T, N> da, db;
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const W z = sum_b[r][k], s = sigmoid_of(z), d = up.v[k];
            da.v[k] = convert<T>(d * z * s);
            db.v[k] = convert<T>(d * sum_a[r][k] * s * (1 + z * (1 - s)));
          }
          store_pack(out + pixel * im.c + c0, da);
          store_pack(out + pixel * im.c + c0 + half, db);
        } else {
          Pack<T, N> y;
#pragma unroll
          for (int k = 0; k < N; ++k) y.v[k] = convert<T>(sum_a[r][k] * silu_of(sum_b[r][k]));
          store_pack(out + pixel * half + c0, y);
        }
      }
#pragma unroll
      for (int k = 0; k < N; ++k) {
        sum_a[r][k] = a.bias[k];
        sum_b[r][k] = b.bias[k];
      }
    }
  };
  const auto step = [&]<int K>(int q) {  // q % 3 == K
    Pack<T, N> next_a[R + 2], next_b[R + 2];
    load_column(from_a, im, top - 1, q + 1, next_a);
    load_column(from_b, im, top - 1, q + 1, next_b);
    a.template add<K, kSilu>(column_a);
    b.template add<K, kSilu>(column_b);
    constexpr int kDone = (K + 2) % 3;
    // Before the first column there is nothing to finish, but its slot has gathered what lies outside.
    if (q == 0) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int k = 0; k < N; ++k) {
          a.sums[kDone][r][k] = a.bias[k];
          b.sums[kDone][r][k] = b.bias[k];
        }
    } else {
      finish(q - 1, a.sums[kDone], b.sums[kDone]);
    }
#pragma unroll
    for (int r = 0; r < R + 2; ++r) {
      column_a[r] = next_a[r];
      column_b[r] = next_b[r];
    }
  };
  for (int q = 0; q <= im.width; q += 3) {  // column `width` is outside: zeros
    step.template operator()<0>(q);
    if (q + 1 <= im.width) step.template operator()<1>(q + 1);
    if (q + 2 <= im.width) step.template operator()<2>(q + 2);
  }
}

// From dm: dx = f'(x) (transposed convolution), and this thread's share of the sums for the filters and the
// bias, parts [pieces, C, 10]. A piece is every `pieces`-th band.
template <class T, int R, int N, bool kSilu>
__global__ void __launch_bounds__(128, kResident<T>) depthwise_backward_kernel(const T* dm, const T* x, const T* w, Plane im,
                                                                 FastDiv groups, FastDiv bands, uint32_t pieces,
                                                                 uint32_t all_bands, T* dx, Wide<T>* parts) {
  using W = Wide<T>;
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t piece = groups.div(i), group = i - piece * groups.d;
  if (piece >= pieces) return;
  const int64_t c0 = int64_t(group) * N, pixels = int64_t(im.height) * im.width;
  W f[9][N], df[9][N] = {}, db[N] = {};
  load_filters(w, c0, f);
  for (uint32_t each = piece; each < all_bands; each += pieces) {
    const uint32_t image = bands.div(each);
    const int top = int(each - image * bands.d) * R;
    const int64_t base = image * pixels * im.c + c0;
    Column<W, R + 2, N> window[3] = {};
    const auto widen = [&](const Pack<T, N>(&from)[R + 2], Column<W, R + 2, N>& to) {
#pragma unroll
      for (int r = 0; r < R + 2; ++r)
#pragma unroll
        for (int k = 0; k < N; ++k) to.v[r][k] = from[r].v[k];
    };
    Pack<T, N> raw[R + 2], here[R];
    load_column(dm + base, im, top - 1, 0, raw);
    widen(raw, window[0]);
    load_column(dm + base, im, top - 1, 1, raw);
    load_column(x + base, im, top, 0, here);
    const auto step = [&]<int K>(int q) {  // q % 3 == K; window[K] holds column q
      widen(raw, window[(K + 1) % 3]);
      Pack<T, N> now[R];
#pragma unroll
      for (int r = 0; r < R; ++r) now[r] = here[r];
      load_column(dm + base, im, top - 1, q + 2, raw);
      load_column(x + base, im, top, q + 1, here);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        Pack<T, N> to;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const W v = now[r].v[k];
          W s = v, slope = 1, sum = 0;
          if (kSilu) {
            const W g = sigmoid_of(v);
            s = v * g;
            slope = g * (1 + v * (1 - g));
          }
#pragma unroll
          for (int p = 0; p < 3; ++p)
#pragma unroll
            for (int t = 0; t < 3; ++t) {
              // The output at (p - 1, t - 1) from here reads this pixel through the tap on the other side.
              const W d = window[(K + 2 + t) % 3].v[r + p][k];
              const int u = (2 - p) * 3 + 2 - t;
              sum += f[u][k] * d;
              df[u][k] += s * d;
            }
          db[k] += window[K].v[r + 1][k];
          to.v[k] = convert<T>(slope * sum);
        }
        if (top + r < im.height) store_pack(dx + base + (int64_t(top + r) * im.width + q) * im.c, to);
      }
    };
    for (int q = 0; q < im.width; q += 3) {
      step.template operator()<0>(q);
      if (q + 1 < im.width) step.template operator()<1>(q + 1);
      if (q + 2 < im.width) step.template operator()<2>(q + 2);
    }
  }
  Wide<T>* to = parts + (int64_t(piece) * im.c + c0) * 10;
#pragma unroll
  for (int k = 0; k < N; ++k) {
#pragma unroll
    for (int u = 0; u < 9; ++u) to[k * 10 + u] = df[u][k];
    to[k * 10 + 9] = db[k];
  }
}

Plane plane_of(const Tensor& x) { return {int(x.dim(1)), int(x.dim(2)), x.dim(3)}; }

// f.template operator()<T, N, kSilu>(): pairs of channels where addresses allow them.
template <class F>
void dispatch(const Tensor& x, int64_t channels, bool silu_first, const Tensors& all, F&& f) {
  dispatch_float(x.dtype(), "depthwise_glu", [&]<class T>() {
    bool pairs = channels % 2 == 0 && sizeof(T) < 8;
    for (const Tensor& t : all) pairs = pairs && is_aligned(t.raw(), 2 * sizeof(T));
    const auto chosen = [&]<int N>() {
      silu_first ? f.template operator()<T, N, true>() : f.template operator()<T, N, false>();
    };
    pairs ? chosen.template operator()<2>() : chosen.template operator()<1>();
  });
}

// The pass over the forward's outputs: y, or dm where dy is given.
template <class T, int N, bool kSilu, bool kBackward>
void launch_forward(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& dy, const Tensor& out) {
  const Plane im = plane_of(x);
  const int64_t groups = im.c / 2 / N, bands = (im.height + kBand - 1) / kBand, count = x.dim(0) * bands * groups;
  check(count <= 0x7fffffff, "depthwise_glu: x of shape ", x.shape(), " is too large for one launch");
  launch({blocks_for(count, kBandThreads), kBandThreads}, depthwise_glu_kernel<T, kBand, N, kSilu, kBackward>,
         pointer<T>(x), pointer<T>(w), pointer<T>(bias), pointer<T>(dy), im, FastDiv(uint32_t(groups)),
         FastDiv(uint32_t(bands)), count, pointer<T>(out));
}

}  // namespace

void depthwise_glu(const Tensor& x, const Tensor& w, const Tensor& bias, bool silu_first, Tensor& y) {
  if (depthwise_glu_tiled(x, w, bias, silu_first, y)) return;
  dispatch(x, y.dim(3), silu_first, {x, y}, [&]<class T, int N, bool kSilu>() {
    launch_forward<T, N, kSilu, false>(x, w, bias, {}, y);
  });
}

void depthwise_glu_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& bias,
                            bool silu_first, Tensor& dx, Tensor& dw, Tensor& dbias) {
  const Tensor dm = empty_like(x);
  if (depthwise_gate_tiled(dy, x, w, bias, silu_first, dm) &&
      depthwise_backward_tiled(dm, x, w, silu_first, dx, dw, dbias))
    return;
  const Plane im = plane_of(x);
  const int64_t bands = (im.height + kBand - 1) / kBand, all_bands = x.dim(0) * bands;
  // Enough threads for a large GPU; by the shape alone, so that sums repeat.
  const int64_t pieces = std::clamp<int64_t>((int64_t(1) << 17) / im.c * 2, 1, all_bands);
  const Tensor parts({pieces, im.c, 10}, accumulate_dtype(x.dtype()), Device::cuda);
  dispatch(x, dy.dim(3), silu_first, {x, dy, dx}, [&]<class T, int N, bool kSilu>() {
    launch_forward<T, N, kSilu, true>(x, w, bias, dy, dm);
    const int64_t groups = im.c / N;
    launch({blocks_for(pieces * groups, kBandThreads), kBandThreads},
           depthwise_backward_kernel<T, kBand, N, kSilu>, pointer<T>(dm), pointer<T>(x), pointer<T>(w), im,
           FastDiv(uint32_t(groups)), FastDiv(uint32_t(bands)), pieces, all_bands, pointer<T>(dx),
           pointer<Wide<T>>(parts));
  });
  const Tensor sums = rivulet::sum_to(parts, {1, im.c, 10}).select(0, 0);
  dw.copy_from(sums.slice(1, 0, 9));
  dbias.copy_from(sums.select(1, 9));
}

}  // namespace rivulet::cuda
