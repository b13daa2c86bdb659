#include "ops/norm.h"

#include "ops/norm_pass.cuh"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// Elements j, j + 1, ... of a row in f32 (f64), P at a time.
template <int P, class T>
__device__ void load_wide(const T* p, Wide<T> (&out)[P]) {
  const Pack<T, P> x = load_pack<T, P>(p);
#pragma unroll
  for (int i = 0; i < P; ++i) out[i] = Wide<T>(x.v[i]);
}
template <int P, class T>
__device__ void store_wide(T* p, const Wide<T> (&x)[P]) {
  Pack<T, P> out;
#pragma unroll
  for (int i = 0; i < P; ++i) out.v[i] = convert<T>(x[i]);
  store_pack<T, P>(p, out);
}

// f(j) for every P-th element of the row that falls to this thread.
template <int kWarps, int P, class F>
__device__ void along_row(int64_t c, F&& f) {
  for (int64_t j = int64_t(threadIdx.x) * P; j < c; j += 32 * kWarps * P) f(j);
}

// a * b, rounded: never fused with what it is subtracted from, so that a row which equals its mean leaves
// exactly nothing.
__device__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ double product(double a, double b) { return __dmul_rn(a, b); }

template <class T>
struct RowArguments {
  int64_t rows, c, rows_per_group;
  const T *x, *w, *b;  // w, b: a row per group, or null
  Wide<T> offset;

  template <int P>
  __device__ void weights(int64_t row, int64_t j, Wide<T> (&out)[P]) const {
    if (w) {
      load_wide<P>(w + row / rows_per_group * c + j, out);
#pragma unroll
      for (int i = 0; i < P; ++i) out[i] += offset;
    } else {
#pragma unroll
      for (int i = 0; i < P; ++i) out[i] = 1;
    }
  }
};

// A row is read once from memory and again from the first-level cache.
template <class T, int kWarps, int P, bool kCentred>
__global__ void norm_forward(RowArguments<T> a, Wide<T> eps, T* y, Wide<T>* mean, Wide<T>* r) {
  const int64_t row = row_index<kWarps>();
  if (row >= a.rows) return;
  const T* x = a.x + row * a.c;
  Wide<T> total = 0, squares = 0, v[P];
  if constexpr (kCentred) {
    along_row<kWarps, P>(a.c, [&](int64_t j) {
      load_wide<P>(x + j, v);
#pragma unroll
      for (int i = 0; i < P; ++i) total += v[i];
    });
    total = block_sum<kWarps>(total);
  }
  const Wide<T> mu = total / Wide<T>(a.c);
  along_row<kWarps, P>(a.c, [&](int64_t j) {
    load_wide<P>(x + j, v);
#pragma unroll
    for (int i = 0; i < P; ++i) squares += (v[i] - mu) * (v[i] - mu);
  });
  const Wide<T> rstd = Wide<T>(1) / ::sqrt(block_sum<kWarps>(squares) / Wide<T>(a.c) + eps);
  along_row<kWarps, P>(a.c, [&](int64_t j) {
    Wide<T> w[P], b[P] = {};
    load_wide<P>(x + j, v);
    a.weights(row, j, w);
    if (a.b) load_wide<P>(a.b + row / a.rows_per_group * a.c + j, b);
#pragma unroll
    for (int i = 0; i < P; ++i) v[i] = (v[i] - mu) * rstd * w[i] + b[i];
    store_wide<P>(y + row * a.c + j, v);
  });
  if (threadIdx.x != 0) return;
  if (kCentred) mean[row] = mu;
  r[row] = rstd;
}

template <class T, int kWarps, int P, bool kCentred>
__global__ void norm_backward(RowArguments<T> a, const T* g, const Wide<T>* mean, const Wide<T>* r, T* dx) {
  const int64_t row = row_index<kWarps>();
  if (row >= a.rows) return;
  const T *x = a.x + row * a.c, *up = g + row * a.c;
  const Wide<T> mu = kCentred ? mean[row] : Wide<T>(0), rstd = r[row];
  Wide<T> total = 0, dot = 0, v[P], u[P], w[P];
  along_row<kWarps, P>(a.c, [&](int64_t j) {
    load_wide<P>(x + j, v);
    load_wide<P>(up + j, u);
    a.weights(row, j, w);
#pragma unroll
    for (int i = 0; i < P; ++i) {
      u[i] = product(u[i], w[i]);
      total += u[i];
      dot += u[i] * (v[i] - mu);
    }
  });
  const Wide<T> shift = kCentred ? block_sum<kWarps>(total) / Wide<T>(a.c) : Wide<T>(0);
  const Wide<T> pull = block_sum<kWarps>(dot) * rstd * rstd / Wide<T>(a.c);
  along_row<kWarps, P>(a.c, [&](int64_t j) {
    load_wide<P>(x + j, v);
    load_wide<P>(up + j, u);
    a.weights(row, j, w);
#pragma unroll
    for (int i = 0; i < P; ++i) v[i] = rstd * (product(u[i], w[i]) - shift - (v[i] - mu) * pull);
    store_wide<P>(dx + row * a.c + j, v);
  });
}

// f.template operator()<T, kWarps, P, kCentred>(launch) for these rows; every tensor in `packed` is moved in
// packs when all of them allow it.
template <class F>
void with_rows(const RowNorm& n, const Tensor& x, const Tensors& packed, F&& f) {
  const int64_t c = x.dim(-1), rows = x.numel() / std::max<int64_t>(c, 1);
  bool packs = c * size_of(x.dtype()) % 16 == 0;
  for (const Tensor& t : packed) packs = packs && (!t || is_aligned(t.raw(), 16));
  dispatch_float(x.dtype(), "norm", [&]<class T>() {
    launch_rows(rows, c, [&]<int kWarps>(dim3 grid, dim3 block) {
      const auto centred = [&]<int P>() {
        n.centred ? f.template operator()<T, kWarps, P, true>(Launch(grid, block))
                  : f.template operator()<T, kWarps, P, false>(Launch(grid, block));
      };
      packs ? centred.template operator()<kPack<T>>() : centred.template operator()<1>();
    });
  });
}

template <class T>
RowArguments<T> arguments(const RowNorm& n, const Tensor& x, const Tensor& w, const Tensor& b) {
  const int64_t c = x.dim(-1);
  return {x.numel() / c, c, n.rows_per_group, pointer<T>(x), pointer<T>(w), pointer<T>(b), Wide<T>(n.offset)};
}

// --- Sums over the rows of a group -------------------------------------------------------------------------

constexpr int kSumLanes = 8;  // rows that a block reads side by side

// partial [parts, groups, 2, c]: blockIdx.y is the part, of `each` rows; blockIdx.z the group.
template <class T>
__global__ void sum_columns(const T* g, const T* x, const Wide<T>* mean, const Wide<T>* r, int64_t rows,
                            int64_t each, int64_t c, Wide<T>* partial) {
  __shared__ Wide<T> sums[2][kSumLanes][32];
  const int64_t j = int64_t(blockIdx.x) * 32 + threadIdx.x;
  Wide<T> total = 0, product = 0;
  if (j < c) {
    const int64_t end = min(rows, (blockIdx.y + 1) * each);
    for (int64_t i = blockIdx.y * each + threadIdx.y; i < end; i += kSumLanes) {
      const int64_t row = blockIdx.z * rows + i;
      const Wide<T> up = g[row * c + j];
      total += up;
      if (x) product += up * (Wide<T>(x[row * c + j]) - (mean ? mean[row] : 0)) * (r ? r[row] : 1);
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = total;
  sums[1][threadIdx.y][threadIdx.x] = product;
  __syncthreads();
  if (threadIdx.y >= 2 || j >= c) return;
  Wide<T> sum = 0;
  for (int y = 0; y < kSumLanes; ++y) sum += sums[threadIdx.y][y][threadIdx.x];
  partial[((int64_t(blockIdx.y) * gridDim.z + blockIdx.z) * 2 + threadIdx.y) * c + j] = sum;
}

}  // namespace

void norm_rows(const RowNorm& n, const Tensor& x, const Tensor& w, const Tensor& b, double eps,
               const Tensor& y, const Tensor& mean, const Tensor& r) {
  NormPass pass{.norm = n, .eps = eps};
  pass.x = x;
  pass.w = w;
  pass.b = b;
  pass.y = y;
  pass.mean = mean;
  pass.r = r;
  if (norm_pass(pass)) return;
  with_rows(n, x, {x, w, b, y}, [&]<class T, int kWarps, int P, bool kCentred>(const Launch& l) {
    launch(l, norm_forward<T, kWarps, P, kCentred>, arguments<T>(n, x, w, b), eps, pointer<T>(y),
           pointer<Wide<T>>(mean), pointer<Wide<T>>(r));
  });
}

void norm_rows_backward(const RowNorm& n, const Tensor& g, const Tensor& x, const Tensor& w,
                        const Tensor& mean, const Tensor& r, const Tensor& dx, const Tensor& dw,
                        const Tensor& db) {
  NormPassBackward pass{.norm = n};
  pass.g = g;
  pass.x = x;
  pass.w = w;
  pass.mean = mean;
  pass.r = r;
  pass.dx = dx;
  pass.dw = dw;
  pass.db = db;
  if (norm_pass_backward(pass)) return;
  sum_groups(g, x, mean, r, n.rows_per_group, db, dw);
  with_rows(n, x, {g, x, w, dx}, [&]<class T, int kWarps, int P, bool kCentred>(const Launch& l) {
    launch(l, norm_backward<T, kWarps, P, kCentred>, arguments<T>(n, x, w, {}), pointer<T>(g),
           pointer<Wide<T>>(mean), pointer<Wide<T>>(r), pointer<T>(dx));
  });
}

void sum_groups(const Tensor& g, const Tensor& x, const Tensor& mean, const Tensor& r, int64_t rows_per_group,
                const Tensor& total, const Tensor& product) {
  if (!total && !product) return;
  const int64_t c = g.dim(-1), rows = rows_per_group;
  const int64_t groups = rows == 0 || c == 0 ? 0 : g.numel() / (rows * c);
  if (groups == 0) {
    if (total) total.fill(0);
    if (product) product.fill(0);
    return;
  }
  check(groups <= 65535, "norm: ", groups, " groups of rows");
  const int64_t columns = (c + 31) / 32;
  const int64_t parts = std::clamp<int64_t>(std::min(rows / 32, 1024 / (columns * groups)), 1, 256);
  const Tensor partial({parts, groups, 2, c}, accumulate_dtype(g.dtype()), Device::cuda);
  dispatch_float(g.dtype(), "norm", [&]<class T>() {
    launch({dim3(unsigned(columns), unsigned(parts), unsigned(groups)), dim3(32, kSumLanes)}, sum_columns<T>,
           pointer<T>(g), product ? pointer<T>(x) : nullptr, pointer<Wide<T>>(mean), pointer<Wide<T>>(r),
           rows, (rows + parts - 1) / parts, c, pointer<Wide<T>>(partial));
  });
  const Tensor sums = rivulet::sum_to(partial, {1, groups, 2, c});
  if (total) total.copy_from(sums.select(2, 0).reshape(total.shape()));
  if (product) product.copy_from(sums.select(2, 1).reshape(product.shape()));
}

void rms_norm(const Tensor& x, const Tensor& w, double eps, double offset, Tensor& y, Tensor& r) {
  norm_rows({.centred = false, .offset = offset, .rows_per_group = r.numel()}, x, w, {}, eps, y, {}, r);
}

void rms_norm_backward(const Tensor& g, const Tensor& x, const Tensor& w, double offset, const Tensor& r,
                       Tensor& dx, Tensor& dw) {
  norm_rows_backward({.centred = false, .offset = offset, .rows_per_group = r.numel()}, g, x, w, {}, r, dx,
                     dw, {});
}

void layer_norm(const Tensor& x, const Tensor& w, const Tensor& b, double eps, Tensor& y, Tensor& mean,
                Tensor& r) {
  norm_rows({.centred = true, .offset = 0, .rows_per_group = r.numel()}, x, w, b, eps, y, mean, r);
}

void layer_norm_backward(const Tensor& g, const Tensor& x, const Tensor& w, const Tensor& mean,
                         const Tensor& r, Tensor& dx, Tensor& dw, Tensor& db) {
  norm_rows_backward({.centred = true, .offset = 0, .rows_per_group = r.numel()}, g, x, w, mean, r, dx, dw, db);
}

}  // namespace rivulet::cuda
