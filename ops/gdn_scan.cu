#include "ops/gdn.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kScanThreads = 256, kScanColumns = 16, kSumGroups = 8;

template <class T>
struct ChainList {
  GdnChain<T> chain[4];
};

// What one block works on: columns first .. first + width of one chain of one (batch, head).
template <class T>
struct ScanTile {
  const GdnChain<T>& chain;
  int d, t, first, width;
  int64_t bh;

  __device__ int64_t at(int f, int i, int c) const { return ((bh * t + f) * d + i) * chain.cols + first + c; }
  __device__ int64_t edge(int i, int c) const { return (bh * chain.cols + first + c) * d + i; }
};

// Thread (ty, tx) holds rows ty * kRows ... of column tx. D <= 16 * kRows. P is symmetric, so its rows are
// read as its columns. The columns of a state never mix, which is what makes blocks independent.
template <class T, int kRows>
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(GdnSizes n, const T* decay, __grid_constant__ const ChainList<T> list) {
  constexpr int kPadded = 16 * kRows, kScanDepth = kRows == 16 ? 8 : 16;  // f64 fits in 48 KB
  __shared__ alignas(16) T slab[kScanDepth][kPadded];
  __shared__ T state[kPadded][kScanColumns];
  const GdnChain<T>& chain = list.chain[blockIdx.z];
  const int first = int(blockIdx.y) * kScanColumns;
  if (first >= chain.cols) return;
  const ScanTile<T> tile{chain, n.d, n.t, first, min(kScanColumns, chain.cols - first), int64_t(blockIdx.x)};
  const int tx = int(threadIdx.x) % 16, i0 = int(threadIdx.x) / 16 * kRows, b = int(blockIdx.x) / n.h,
            h = int(blockIdx.x) % n.h;
  const auto mine = [&](auto&& f) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (i0 + r < n.d && tx < tile.width) f(r, i0 + r);
  };

  T s[kRows] = {};
  if (chain.start != nullptr) mine([&](int r, int i) { s[r] = chain.start[tile.edge(i, tx)]; });
  const auto add = [&](int f) { mine([&](int r, int i) { s[r] += chain.add[tile.at(f, i, tx)]; }); };
  const auto keep = [&](int f) { mine([&](int r, int i) { chain.kept[tile.at(f, i, tx)] = s[r]; }); };
  const auto absorb = [&](int f) {
    const T* p = chain.p + (tile.bh * n.t + f) * n.d * n.d;
    const T g = decay[(int64_t(b) * n.t + f) * n.h + h];
    T product[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) state[i0 + r][tx] = s[r];
    for (int k0 = 0; k0 < n.d; k0 += kScanDepth) {
      __syncthreads();  // also: the state is written
      for (int at = threadIdx.x; at < kScanDepth * kPadded; at += kScanThreads) {
        const int k = at / kPadded, i = at % kPadded;
        slab[k][i] = k0 + k < n.d && i < n.d ? p[int64_t(k0 + k) * n.d + i] : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kScanDepth; ++k) {
        const T x = state[k0 + k][tx];
#pragma unroll
        for (int r = 0; r < kRows; ++r) product[r] += slab[k][i0 + r] * x;
      }
    }
    __syncthreads();  // the state has been read by all
#pragma unroll
    for (int r = 0; r < kRows; ++r) s[r] = g * (s[r] - product[r]);
  };

  for (int step = 0; step < n.t; ++step) {
    const int f = chain.order == ChainOrder::after ? step : n.t - 1 - step;
    if (chain.order == ChainOrder::around) add(f);
    if (chain.order != ChainOrder::after) keep(f);
    absorb(f);
    if (chain.order != ChainOrder::around) add(f);
    if (chain.order == ChainOrder::after) keep(f);
  }
  if (chain.end != nullptr) mine([&](int r, int i) { chain.end[tile.edge(i, tx)] = s[r]; });
}

// A block per cell and 32 values of D; its 8 groups of threads take turns with the tokens.
template <class T>
__global__ void weigh_and_sum_kernel(GdnSizes n, GdnTokens<T> x, GdnTokens<T> weight, T* out) {
  __shared__ T part[kSumGroups][32];
  const GdnCell c(blockIdx.x, n);
  const int lane = int(threadIdx.x) % 32, group = int(threadIdx.x) / 32, j = int(blockIdx.y) * 32 + lane;
  T sum = 0;
  if (j < n.d)
    for (int token = group; token < n.s; token += kSumGroups) sum += *weight.at(c, token) * x.at(c, token)[j];
  part[group][lane] = sum;
  __syncthreads();
  if (group != 0 || j >= n.d) return;
#pragma unroll
  for (int g = 1; g < kSumGroups; ++g) sum += part[g][lane];
  out[c.row(n) + j] = sum;
}

}  // namespace

template <class T>
void run_chains(const GdnSizes& n, const T* decay, const std::vector<GdnChain<T>>& chains) {
  ChainList<T> list{};
  int cols = 0;
  for (size_t i = 0; i < chains.size(); ++i) {
    list.chain[i] = chains[i];
    cols = std::max(cols, chains[i].cols);
  }
  check(n.d <= 256, "gdn: the head dim is ", n.d, ", the GPU's scan holds at most 256");
  const dim3 grid(unsigned(n.b * n.h), blocks_for(cols, kScanColumns), unsigned(chains.size()));
  launch({grid, kScanThreads},
         n.d <= 32    ? scan_kernel<T, 2>
         : n.d <= 128 ? scan_kernel<T, 8>
                      : scan_kernel<T, 16>,
         n, decay, list);
}
template void run_chains<float>(const GdnSizes&, const float*, const std::vector<GdnChain<float>>&);
template void run_chains<double>(const GdnSizes&, const double*, const std::vector<GdnChain<double>>&);

template <class T>
void weigh_and_sum(const GdnSizes& n, const GdnTokens<T>& x, const GdnTokens<T>& weight, T* out) {
  launch({dim3(unsigned(n.cells()), blocks_for(n.d, 32)), 32 * kSumGroups}, weigh_and_sum_kernel<T>, n, x,
         weight, out);
}
template void weigh_and_sum<float>(const GdnSizes&, const GdnTokens<float>&, const GdnTokens<float>&, float*);
template void weigh_and_sum<double>(const GdnSizes&, const GdnTokens<double>&, const GdnTokens<double>&,
                                    double*);

}  // namespace rivulet::cuda
