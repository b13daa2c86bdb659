#include "ops/gdn.cuh"

// Phases A (each frame's P, A, Pz, b), B (the scans) and C (each token reads the state).
namespace rivulet::cuda {
namespace {

// Matrix blockIdx.z of a cell: 0 P = Kr' B Kr, 1 A = Kr' B V, 2 Pz = K' B K.
template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    summarize_kernel(GdnSizes n, GdnTokens<T> k, GdnTokens<T> kr, GdnTokens<T> v, GdnTokens<T> beta, T* p,
                     T* a, T* p_z) {
  const GdnCell c(blockIdx.x, n);
  const int tiles = (n.d + kSize - 1) / kSize, i0 = int(blockIdx.y) / tiles * kSize,
            j0 = int(blockIdx.y) % tiles * kSize, what = int(blockIdx.z);
  const GdnTokens<T> left = what == 2 ? k : kr;
  const GdnTokens<T> right = what == 0 ? kr : what == 1 ? v : k;
  T acc[kSize / 8][kSize / 8] = {};
  tile_product<T, kSize>(
      n.s, WeighedTokens<T>{left.at(c) + i0, left.step_s, beta.at(c), beta.step_s, n.d - i0, n.s},
      Operand<T, false>{right.at(c) + j0, right.step_s, n.d - j0, n.s}, acc);
  T* out = (what == 0 ? p : what == 1 ? a : p_z) + c.square(n);
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (i0 + i < n.d && j0 + j < n.d) out[(i0 + i) * n.d + j0 + j] = value;
  });
}

// den [B, T, S, H] = q . (z + zr) + eps, a warp per token and head.
template <class T>
__global__ void den_kernel(GdnSizes n, GdnTokens<T> q, const T* z, const T* zr, T eps, T* den) {
  const int64_t row = (int64_t(blockIdx.x) * kGdnRowThreads + threadIdx.x) / 32;
  if (row >= n.rows()) return;
  const int lane = int(threadIdx.x) % 32, h = int(row % n.h), token = int(row / n.h % n.s),
            frame = int(row / n.h / n.s);
  const GdnCell c((frame / n.t * n.h + h) * n.t + frame % n.t, n);
  const T* x = q.at(c, token);
  T sum = 0;
  for (int j = lane; j < n.d; j += 32) sum += x[j] * (z[c.row(n) + j] + zr[c.row(n) + j]);
  sum = warp_reduce(sum, Plus{});
  if (lane == 0) den[row] = sum + eps;
}

// out = Qr (M + R) / den for one tile of tokens and columns of one cell.
template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    read_kernel(GdnSizes n, GdnTokens<T> qr, const T* m, const T* r, GdnTokens<T> den, GdnTokens<T> out) {
  const int tiles = (n.s + kSize - 1) / kSize;
  const GdnCell c(int(blockIdx.x) / tiles, n);
  const int s0 = int(blockIdx.x) % tiles * kSize, j0 = int(blockIdx.y) * kSize;
  T acc[kSize / 8][kSize / 8] = {};
  tile_product<T, kSize>(n.d, Operand<T, true>{qr.at(c, s0), qr.step_s, n.s - s0, n.d},
                         SumOperand<T, false>{m + c.square(n) + j0, r + c.square(n) + j0, n.d, n.d - j0, n.d},
                         acc);
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (s0 + i < n.s && j0 + j < n.d) out.at(c, s0 + i)[j0 + j] = value / *den.at(c, s0 + i);
  });
}

}  // namespace

void gdn(const GdnInputs& in, bool reverse_scan, double eps, GdnResult& result, GdnSaved& saved) {
  const GdnSizes n(in.q);
  dispatch_real(in.q.dtype(), "gdn", [&]<class U>() {
    const Tensor a = empty_like(saved.m), b = empty_like(saved.z);  // what each frame adds
    dispatch_tile<U>(n.d, [&]<class T, int kSize>() {
      const unsigned tiles = blocks_for(n.d, kSize), token_tiles = blocks_for(n.s, kSize);
      launch({dim3(unsigned(n.cells()), tiles * tiles, 3), kTileThreads}, summarize_kernel<T, kSize>, n,
             GdnTokens<T>(in.k), GdnTokens<T>(in.k_rot), GdnTokens<T>(in.v), GdnTokens<T>(in.beta),
             saved.p.data<T>(), a.data<T>(), saved.p_z.data<T>());
      weigh_and_sum<T>(n, GdnTokens<T>(in.k), GdnTokens<T>(in.beta), b.data<T>());

      std::vector<GdnChain<T>> chains = {
          {ChainOrder::after, n.d, saved.p.data<T>(), a.data<T>(), in.start.kv.data<T>(), saved.m.data<T>(),
           result.final.kv.data<T>()},
          {ChainOrder::after, 1, saved.p_z.data<T>(), b.data<T>(), in.start.z.data<T>(), saved.z.data<T>(),
           result.final.z.data<T>()}};
      if (reverse_scan) {
        chains.push_back(
            {ChainOrder::before, n.d, saved.p.data<T>(), a.data<T>(), nullptr, saved.r.data<T>(), nullptr});
        chains.push_back(
            {ChainOrder::before, 1, saved.p_z.data<T>(), b.data<T>(), nullptr, saved.zr.data<T>(), nullptr});
      } else {
        fill(saved.r, 0);
        fill(saved.zr, 0);
      }
      run_chains<T>(n, in.decay.data<T>(), chains);

      launch({blocks_for(n.rows(), kGdnRowThreads / 32), kGdnRowThreads}, den_kernel<T>, n,
             GdnTokens<T>(in.q), saved.z.data<T>(), saved.zr.data<T>(), T(eps), saved.den.data<T>());
      launch({dim3(unsigned(n.cells()) * token_tiles, tiles), kTileThreads}, read_kernel<T, kSize>, n,
             GdnTokens<T>(in.q_rot), saved.m.data<T>(), saved.r.data<T>(), GdnTokens<T>(saved.den),
             GdnTokens<T>(result.out));
    });
  });
}

}  // namespace rivulet::cuda
