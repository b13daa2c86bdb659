// A packed, register-tiled product after Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication" (2008). Slabs of A and B are copied into panels that the micro-kernel reads front to
// back; the micro-kernel keeps a small tile of C in registers. Every element of C is one sum in an order
// that depends on k alone, so neither tiling nor threads change a bit of the result.
#include "ops/gemm.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "ops/fast_math.h"
#include "tensor/parallel.h"

namespace rivulet::cpu {
namespace {

// The register tile is kRowTile rows by two vectors: it fills the register file but for the two vectors
// of B and the broadcast of A.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRowTile = 14;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRowTile = 6;
#else
constexpr int kVectorBytes = 16, kRowTile = 6;
#endif
constexpr int64_t kDepth = 256;            // k of a slab: a panel of B stays in the first-level cache
constexpr int64_t kPackedBytes = 8 << 20;  // scratch for B; wider products take several rounds

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
constexpr int kColTile = 2 * kLanes<T>;

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
  typedef T unaligned __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
};
template <class T, int bytes = kVectorBytes>
using Vector = typename VectorOf<T, bytes>::type;
template <class T, int bytes = kVectorBytes>
Vector<T, bytes> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T, bytes>::unaligned*>(p);
}
template <class T, int bytes = kVectorBytes>
void store(T* p, Vector<T, bytes> v) {
  *reinterpret_cast<typename VectorOf<T, bytes>::unaligned*>(p) = v;
}

// What is added to a tile: beta * d (d may be C itself, or a bias with ld 0), or nothing when beta is 0.
template <class T>
struct Addend {
  T beta;
  const T* d;
  int64_t ld;
};

// c[rows, cols] = alpha * A tile * B panel + addend. B is a panel [depth][V * lanes]; A either a panel
// [depth][R], or in its place: R rows, lda apart. rows <= R and cols <= V * lanes are the part that exists.
template <class T>
struct Tile {
  int64_t depth;
  const T* a;
  int64_t lda;
  const T* b;
  T alpha;
  Addend<T> add;
  T* c;
  int64_t ldc, rows, cols;
};

// acc[r][v] += A[r][p] * B[p][v] over all p.
template <class T, int R, int V, bool packed_a>
void accumulate(int64_t depth, const T* a, int64_t lda, const T* b, Vector<T> (&acc)[R][V]) {
  constexpr int L = kLanes<T>;
  // A pointer to every third row: the two between are reached by index, so all fit the registers.
  constexpr int kStep = 3;
  const T* row[(R + kStep - 1) / kStep];
#pragma GCC unroll 5
  for (int i = 0; i < (R + kStep - 1) / kStep; ++i) row[i] = a + i * kStep * lda;
  for (int64_t p = 0; p < depth; ++p, b += V * L) {
    Vector<T> bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) bv[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T x = packed_a ? a[p * R + r] : row[r / kStep][r % kStep * lda + p];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] += x * bv[v];
    }
  }
}

// The tile comes by reference: as many arguments by value would go through memory in pieces whose re-reading
// waits for the stores of the tile before.
template <class T, int R, int V, bool packed_a>
void micro_kernel(const Tile<T>& t) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[R][V] = {};
  accumulate<T, R, V, packed_a>(t.depth, t.a, t.lda, t.b, acc);
  const T alpha = t.alpha, beta = t.add.beta;
  if (t.rows == R && t.cols == V * L) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        Vector<T> out = alpha * acc[r][v];
        if (beta != T(0)) out += beta * load(t.add.d + r * t.add.ld + v * L);
        store(t.c + r * t.ldc + v * L, out);
      }
    }
    return;
  }
  T tile[R][V * L];
  std::memcpy(tile, acc, sizeof(tile));
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t j = 0; j < t.cols; ++j) {
      T out = alpha * tile[r][j];
      if (beta != T(0)) out += beta * t.add.d[r * t.add.ld + j];
      t.c[r * t.ldc + j] = out;
    }
  }
}

template <class T>
using MicroKernel = void (*)(const Tile<T>&);

// Kernels for panels of 2, 4, ... kRowTile rows by one or two vectors, so that edges do not pay for a full
// tile.
template <class T>
MicroKernel<T> kernel_for(int64_t panel_rows, int64_t panel_cols) {
  static constexpr auto table = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<std::array<MicroKernel<T>, 2>, sizeof...(I)>{
        {{micro_kernel<T, 2 * (I + 1), 1, true>, micro_kernel<T, 2 * (I + 1), 2, true>}...}};
  }
  (std::make_integer_sequence<int, kRowTile / 2>{});
  return table[panel_rows / 2 - 1][panel_cols / kLanes<T> - 1];
}
// kRowTile rows of A that were not packed.
template <class T>
MicroKernel<T> kernel_in_place(int64_t panel_cols) {
  return panel_cols > kLanes<T> ? micro_kernel<T, kRowTile, 2, false> : micro_kernel<T, kRowTile, 1, false>;
}

// Height of the panel that holds `rows` rows, and width of the one that holds `cols` columns.
int64_t panel_height(int64_t rows) { return std::min<int64_t>(kRowTile, (rows + 1) / 2 * 2); }
template <class T>
int64_t panel_width(int64_t cols) {
  return cols > kLanes<T> ? kColTile<T> : kLanes<T>;
}

// dst[q * step + r] = src[r * ld + q] for r, q < 4.
template <class T>
void transpose4(const T* src, int64_t ld, T* dst, int64_t step) {
  if constexpr (4 * sizeof(T) > kVectorBytes) {
    for (int64_t q = 0; q < 4; ++q)
      for (int64_t r = 0; r < 4; ++r) dst[q * step + r] = src[r * ld + q];
  } else {
    constexpr int kBytes = 4 * sizeof(T);
    const auto r0 = load<T, kBytes>(src), r1 = load<T, kBytes>(src + ld);
    const auto r2 = load<T, kBytes>(src + 2 * ld), r3 = load<T, kBytes>(src + 3 * ld);
    const auto lo01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5),
               hi01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
    const auto lo23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5),
               hi23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
    store<T, kBytes>(dst, __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5));
    store<T, kBytes>(dst + step, __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7));
    store<T, kBytes>(dst + 2 * step, __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5));
    store<T, kBytes>(dst + 3 * step, __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7));
  }
}

// Copies `lines` rows of op(A) (or columns of op(B)) into one panel [depth][width], zeros after them.
// along_k says that a line's elements are neighbours in memory; otherwise the lines are.
template <class T>
void pack_panel(const T* src, int64_t ld, bool along_k, int64_t lines, int64_t width, int64_t depth, T* dst) {
  if (!along_k) {
    for (int64_t p = 0; p < depth; ++p) {
      std::memcpy(dst + p * width, src + p * ld, lines * sizeof(T));
      std::fill(dst + p * width + lines, dst + (p + 1) * width, T(0));
    }
    return;
  }
  if (lines < width) std::fill(dst, dst + depth * width, T(0));
  if (lines < 4) {
    for (int64_t r = 0; r < lines; ++r)
      for (int64_t p = 0; p < depth; ++p) dst[p * width + r] = src[r * ld + p];
    return;
  }
  const int64_t whole = depth / 4 * 4;
  for (int64_t p = 0; p < whole; p += 4) {
    // The last group overlaps the one before when lines is not a multiple of 4.
    for (int64_t r = 0; r < lines; r += 4) {
      const int64_t first = std::min(r, lines - 4);
      transpose4(src + first * ld + p, ld, dst + p * width + first, width);
    }
  }
  for (int64_t p = whole; p < depth; ++p)
    for (int64_t r = 0; r < lines; ++r) dst[p * width + r] = src[r * ld + p];
}

template <class T>
struct Problem {
  bool trans_a, trans_b;
  int64_t m, n, k;
  T alpha;
  const T *a, *b;
  int64_t lda, ldb;
  T* c;
  int64_t ldc;
  Activation f;
  bool parallel;

  // Address of op(A)[i][p] and op(B)[p][j].
  const T* a_at(int64_t i, int64_t p) const { return a + (trans_a ? p * lda + i : i * lda + p); }
  const T* b_at(int64_t p, int64_t j) const { return b + (trans_b ? j * ldb + p : p * ldb + j); }
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
std::unique_ptr<T[], decltype(&std::free)> scratch(int64_t elements) {
  const size_t bytes = ceil_div(elements * int64_t(sizeof(T)), 64) * 64;
  T* p = static_cast<T*>(std::aligned_alloc(64, bytes));
  if (!p) throw std::bad_alloc();
  return {p, &std::free};
}

// Whether the kernel may read whole row tiles of A where they are. Rows a multiple of 4 KiB apart would
// share the few places that a cache has for such addresses.
template <class T>
bool reads_in_place(const Problem<T>& x) {
  return !x.trans_a && x.lda * int64_t(sizeof(T)) % 4096 != 0;
}

template <class T>
void activate(Activation f, T* c, int64_t n) {
  if (f == Activation::none) return;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) c[j] *= sigmoid_of(c[j]);
}

// Rows [i0, i0 + m) by columns [j0, j0 + n) of C. packed_b holds columns from j0 on: for each slab of k all
// its panels, `b_slab` elements to the next slab. What of A needs packing is packed here, so it stays in this
// core's cache.
template <class T>
void multiply_block(const Problem<T>& x, int64_t i0, int64_t m, int64_t j0, int64_t n, int64_t step_k,
                    const T* packed_b, int64_t b_slab, Addend<T> add, T* packed_a) {
  const int64_t whole = reads_in_place(x) ? m / kRowTile * kRowTile : 0;
  for (int64_t p = 0; p < std::max<int64_t>(x.k, 1); p += step_k, packed_b += b_slab) {
    const int64_t depth = std::min(step_k, x.k - p);
    const Addend<T> here = p == 0 ? add : Addend<T>{1, x.c, x.ldc};
    for (int64_t i = whole; i < m; i += kRowTile) {
      const int64_t rows = std::min<int64_t>(kRowTile, m - i);
      pack_panel(x.a_at(i0 + i, p), x.lda, !x.trans_a, rows, panel_height(rows), depth,
                 packed_a + i * step_k);
    }
    for (int64_t j = 0; j < n; j += kColTile<T>) {
      const int64_t cols = std::min<int64_t>(kColTile<T>, n - j), width = panel_width<T>(cols);
      for (int64_t i = 0; i < m; i += kRowTile) {
        const int64_t rows = std::min<int64_t>(kRowTile, m - i);
        const bool in_place = i < whole;
        const auto kernel = in_place ? kernel_in_place<T>(width) : kernel_for<T>(panel_height(rows), width);
        kernel({depth,
                in_place ? x.a_at(i0 + i, p) : packed_a + i * step_k,
                x.lda,
                packed_b + j * step_k,
                x.alpha,
                {here.beta, here.d + (i0 + i) * here.ld + j0 + j, here.ld},
                x.c + (i0 + i) * x.ldc + j0 + j,
                x.ldc,
                rows,
                cols});
      }
    }
  }
  for (int64_t i = i0; i < i0 + m; ++i) activate(x.f, x.c + i * x.ldc + j0, n);
}

// Columns [j0, j0 + n) of C: packs that part of B once for everybody, then shares out blocks of C.
template <class T>
void multiply_columns(const Problem<T>& x, int64_t j0, int64_t n, int64_t step_k, Addend<T> add,
                      T* packed_b) {
  const int64_t slabs = std::max<int64_t>(1, ceil_div(x.k, step_k)), col_panels = ceil_div(n, kColTile<T>);
  const int64_t row_panels = ceil_div(x.m, kRowTile), total = slabs * col_panels;
  const int64_t b_slab = col_panels * kColTile<T> * step_k;
  parallel_for(total, x.parallel ? 4 : total, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t slab = panel / col_panels, j = panel % col_panels * kColTile<T>, p = slab * step_k;
      const int64_t cols = std::min<int64_t>(kColTile<T>, n - j), depth = std::min(step_k, x.k - p);
      pack_panel(x.b_at(p, j0 + j), x.ldb, x.trans_b, cols, panel_width<T>(cols), depth,
                 packed_b + slab * b_slab + j * step_k);
    }
  });
  // Eight panels of A fit the second-level cache. Fewer, and part of the columns, when threads would idle.
  int64_t rows_each = 8, cols_each = col_panels;
  const auto blocks = [&] { return ceil_div(row_panels, rows_each) * ceil_div(col_panels, cols_each); };
  while (x.parallel && blocks() < 4 * num_threads() && rows_each > 1) rows_each /= 2;
  while (x.parallel && blocks() < 2 * num_threads() && cols_each > 1) cols_each = ceil_div(cols_each, 2);
  const int64_t across = ceil_div(col_panels, cols_each), block_count = blocks();
  parallel_for(block_count, x.parallel ? 1 : block_count, [&](int64_t begin, int64_t end) {
    const auto packed_a = scratch<T>(rows_each * kRowTile * step_k);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t i = block / across * rows_each * kRowTile, j = block % across * cols_each * kColTile<T>;
      multiply_block(x, i, std::min(rows_each * kRowTile, x.m - i), j0 + j,
                     std::min(cols_each * kColTile<T>, n - j), step_k, packed_b + j * step_k, b_slab, add,
                     packed_a.get());
    }
  });
}

template <class T>
T dot(const T* x, const T* y, int64_t n) {
  constexpr int L = kLanes<T>;
  Vector<T> s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    s0 += load(x + i) * load(y + i);
    s1 += load(x + i + L) * load(y + i + L);
    s2 += load(x + i + 2 * L) * load(y + i + 2 * L);
    s3 += load(x + i + 3 * L) * load(y + i + 3 * L);
  }
  const Vector<T> s = (s0 + s1) + (s2 + s3);
  T sum = 0;
  for (int l = 0; l < L; ++l) sum += s[l];
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// A few rows times W^T: bound by reading W once, so packing it would double the work.
template <class T>
void multiply_few_rows(const Problem<T>& x, Addend<T> add) {
  parallel_for(x.n, x.parallel ? std::max<int64_t>(1, 65536 / x.k) : x.n, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t i = 0; i < x.m; ++i) {
        T out = x.alpha * dot(x.a + i * x.lda, x.b + j * x.ldb, x.k);
        if (add.beta != T(0)) out += add.beta * add.d[i * add.ld + j];
        activate(x.f, &out, 1);
        x.c[i * x.ldc + j] = out;
      }
    }
  });
}

template <class T>
void multiply(Problem<T> x, Addend<T> add) {
  if (x.m == 0 || x.n == 0) return;
  // Below this a parallel region costs more than it saves.
  if (x.m * x.n * x.k < 64 * 64 * 32) x.parallel = false;
  if (x.m <= 4 && !x.trans_a && x.trans_b) return multiply_few_rows(x, add);
  const int64_t slabs = std::max<int64_t>(1, ceil_div(x.k, kDepth)),
                step_k = std::max<int64_t>(1, ceil_div(x.k, slabs));
  const int64_t most = kPackedBytes / int64_t(sizeof(T)) / (slabs * step_k);
  const int64_t step_n = std::min(x.n, std::max<int64_t>(8, most / kColTile<T>) * kColTile<T>);
  const auto packed_b = scratch<T>((step_n + kColTile<T>)*slabs * step_k);
  for (int64_t j = 0; j < x.n; j += step_n)
    multiply_columns(x, j, std::min(step_n, x.n - j), step_k, add, packed_b.get());
}

}  // namespace

template <class T>
void gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, T beta, T* c, int64_t ldc, bool parallel) {
  multiply<T>({trans_a, trans_b, m, n, k, alpha, a, b, lda, ldb, c, ldc, Activation::none, parallel},
              {beta, c, ldc});
}

template <class T>
void gemm_bias(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
               const T* b, int64_t ldb, const T* bias, T* c, int64_t ldc, Activation f, bool parallel) {
  multiply<T>({trans_a, trans_b, m, n, k, alpha, a, b, lda, ldb, c, ldc, f, parallel},
              bias ? Addend<T>{1, bias, 0} : Addend<T>{0, c, ldc});
}

template void gemm<float>(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*,
                          int64_t, float, float*, int64_t, bool);
template void gemm<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                           const double*, int64_t, double, double*, int64_t, bool);
template void gemm_bias<float>(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t,
                               const float*, int64_t, const float*, float*, int64_t, Activation, bool);
template void gemm_bias<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                                const double*, int64_t, const double*, double*, int64_t, Activation, bool);

}  // namespace rivulet::cpu
