#include "ops/gdn.cuh"

// The gradient of the phases in reverse order. The gradients of P and of the decays need no scan: once the
// gradients E and L that reach the states are known, they are products within each frame,
//   G = E_f M_{f-1}' + L_{f-1} R_f',   dP = -g G,   dg = sum over i, j of (I - P) G,      the same for z.
namespace rivulet::cuda {
namespace {

// A warp per token and head: dq = dden (z + zr), and the scalars dden and 1 / den.
template <class T>
__global__ void den_backward_kernel(GdnSizes n, GdnTokens<T> q_grad, GdnTokens<T> out, GdnTokens<T> dout,
                                    const T* z, const T* zr, const T* den, T* dden, T* inverse) {
  const int64_t row = (int64_t(blockIdx.x) * kGdnRowThreads + threadIdx.x) / 32;
  if (row >= n.rows()) return;
  const int lane = int(threadIdx.x) % 32, h = int(row % n.h), token = int(row / n.h % n.s),
            frame = int(row / n.h / n.s);
  const GdnCell c((frame / n.t * n.h + h) * n.t + frame % n.t, n);
  const T *y = out.at(c, token), *dy = dout.at(c, token);
  T sum = 0;
  for (int j = lane; j < n.d; j += 32) sum += dy[j] * y[j];
  const T inv = T(1) / den[row], d = -inv * warp_reduce(sum, Plus{});
  T* to = q_grad.at(c, token);
  for (int j = lane; j < n.d; j += 32) to[j] = d * (z[c.row(n) + j] + zr[c.row(n) + j]);
  if (lane == 0) {
    dden[row] = d;
    inverse[row] = inv;
  }
}

// x = Qr' (dout / den): the gradient that reaches the summed states of a cell.
template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    state_grad_kernel(GdnSizes n, GdnTokens<T> qr, GdnTokens<T> dout, GdnTokens<T> inverse, T* x) {
  const GdnCell c(blockIdx.x, n);
  const int tiles = (n.d + kSize - 1) / kSize, i0 = int(blockIdx.y) / tiles * kSize,
            j0 = int(blockIdx.y) % tiles * kSize;
  T acc[kSize / 8][kSize / 8] = {};
  tile_product<T, kSize>(
      n.s, Operand<T, false>{qr.at(c) + i0, qr.step_s, n.d - i0, n.s},
      WeighedTokens<T>{dout.at(c) + j0, dout.step_s, inverse.at(c), inverse.step_s, n.d - j0, n.s}, acc);
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (i0 + i < n.d && j0 + j < n.d) x[c.square(n) + (i0 + i) * n.d + j0 + j] = value;
  });
}

// dQr = dout (M + R)' / den
template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    query_grad_kernel(GdnSizes n, GdnTokens<T> dout, const T* m, const T* r, GdnTokens<T> inverse,
                      GdnTokens<T> qr_grad) {
  const int tiles = (n.s + kSize - 1) / kSize;
  const GdnCell c(int(blockIdx.x) / tiles, n);
  const int s0 = int(blockIdx.x) % tiles * kSize, i0 = int(blockIdx.y) * kSize;
  const int64_t from = c.square(n) + int64_t(i0) * n.d;
  T acc[kSize / 8][kSize / 8] = {};
  tile_product<T, kSize>(n.d, Operand<T, true>{dout.at(c, s0), dout.step_s, n.s - s0, n.d},
                         SumOperand<T, true>{m + from, r + from, n.d, n.d - i0, n.d}, acc);
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (s0 + i < n.s && i0 + j < n.d) qr_grad.at(c, s0 + i)[i0 + j] = value * *inverse.at(c, s0 + i);
  });
}

// The states that the chains pass through, and the gradients that reach them.
template <class T>
struct Chains {
  const T *start, *start_z, *m, *z, *r, *zr, *e, *e_z, *l, *l_z;
  bool reverse;
};

// G = E_f M_{f-1}' + L_{f-1} R_f'
template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads) pair_kernel(GdnSizes n, Chains<T> s, T* pairs) {
  const GdnCell c(blockIdx.x, n);
  const int tiles = (n.d + kSize - 1) / kSize, i0 = int(blockIdx.y) / tiles * kSize,
            j0 = int(blockIdx.y) % tiles * kSize;
  const int64_t own = c.square(n), before = own - int64_t(n.d) * n.d, row_i = int64_t(i0) * n.d,
                row_j = int64_t(j0) * n.d;
  T acc[kSize / 8][kSize / 8] = {};
  const Operand<T, true> e{s.e + own + row_i, n.d, n.d - i0, n.d};
  if (c.f == 0) {  // the start is stored transposed
    const T* start = s.start + (int64_t(c.b) * n.h + c.h) * n.d * n.d;
    tile_product<T, kSize>(n.d, e, Operand<T, false>{start + j0, n.d, n.d - j0, n.d}, acc);
  } else {
    tile_product<T, kSize>(n.d, e, Operand<T, true>{s.m + before + row_j, n.d, n.d - j0, n.d}, acc);
    if (s.reverse)
      tile_product<T, kSize>(n.d, Operand<T, true>{s.l + before + row_i, n.d, n.d - i0, n.d},
                             Operand<T, true>{s.r + own + row_j, n.d, n.d - j0, n.d}, acc);
  }
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (i0 + i < n.d && j0 + j < n.d) pairs[own + (i0 + i) * n.d + j0 + j] = value;
  });
}

// A block per cell: dP + dP' and dPz + dPz' (only these act, P and Pz being quadratic in the keys), the
// decay's gradient, and dA = E_f + L_{f-1}, db likewise.
template <class T>
__global__ void frame_grad_kernel(GdnSizes n, Chains<T> s, const T* pairs, const T* p, const T* p_z,
                                  const T* decay, T* dp, T* dp_z, T* da, T* db, T* ddecay) {
  const GdnCell c(blockIdx.x, n);
  const int64_t own = c.square(n), row = c.row(n), bh = int64_t(c.b) * n.h + c.h;
  const bool both = s.reverse && c.f > 0;
  const int64_t gate = (int64_t(c.b) * n.t + c.f) * n.h + c.h;
  const T g = decay[gate];
  const T* z_before = c.f == 0 ? s.start_z + bh * n.d : s.z + row - n.d;
  const auto pair_z = [&](int i, int j) {
    const T first = s.e_z[row + i] * z_before[j];
    return both ? first + s.l_z[row - n.d + i] * s.zr[row + j] : first;
  };
  T sum = 0;
  for (int at = threadIdx.x; at < n.d * n.d; at += kThreads) {
    const int i = at / n.d, j = at % n.d;
    const T pair = pairs[own + at], zz = pair_z(i, j), one = i == j ? T(1) : T(0);
    sum += (one - p[own + at]) * pair + (one - p_z[own + at]) * zz;
    dp[own + at] = -g * (pair + pairs[own + int64_t(j) * n.d + i]);
    dp_z[own + at] = -g * (zz + pair_z(j, i));
    da[own + at] = both ? s.e[own + at] + s.l[own - int64_t(n.d) * n.d + at] : s.e[own + at];
  }
  for (int i = threadIdx.x; i < n.d; i += kThreads)
    db[row + i] = both ? s.e_z[row + i] + s.l_z[row - n.d + i] : s.e_z[row + i];
  sum = block_sum<kThreads / 32>(sum);
  if (threadIdx.x == 0) ddecay[gate] = sum;
}

// Gradients of what the tokens wrote, before beta: blockIdx.z 0: K dPz + db, 1: Kr dP + V dA', 2: Kr dA.
template <class T, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    token_grad_kernel(GdnSizes n, GdnTokens<T> k, GdnTokens<T> kr, GdnTokens<T> v, const T* dp, const T* dp_z,
                      const T* da, const T* db, GdnTokens<T> k_grad, GdnTokens<T> kr_grad,
                      GdnTokens<T> v_grad) {
  const int tiles = (n.s + kSize - 1) / kSize, what = int(blockIdx.z);
  const GdnCell c(int(blockIdx.x) / tiles, n);
  const int s0 = int(blockIdx.x) % tiles * kSize, j0 = int(blockIdx.y) * kSize;
  const int64_t own = c.square(n);
  const GdnTokens<T> x = what == 0 ? k : kr;
  T acc[kSize / 8][kSize / 8] = {};
  tile_product<T, kSize>(n.d, Operand<T, true>{x.at(c, s0), x.step_s, n.s - s0, n.d},
                         Operand<T, false>{(what == 0   ? dp_z
                                            : what == 1 ? dp
                                                        : da) +
                                               own + j0,
                                           n.d, n.d - j0, n.d},
                         acc);
  if (what == 1)
    tile_product<T, kSize>(n.d, Operand<T, true>{v.at(c, s0), v.step_s, n.s - s0, n.d},
                           Operand<T, true>{da + own + int64_t(j0) * n.d, n.d, n.d - j0, n.d}, acc);
  const GdnTokens<T> to = what == 0 ? k_grad : what == 1 ? kr_grad : v_grad;
  for_each_result<kSize>(acc, [&](int i, int j, T value) {
    if (s0 + i >= n.s || j0 + j >= n.d) return;
    to.at(c, s0 + i)[j0 + j] = what == 0 ? value + db[c.row(n) + j0 + j] : value;
  });
}

// A warp per token and head: dbeta, then the three gradients times beta. P and Pz count half, since their
// symmetric gradient holds them twice; the unhalved parts of a sum are added once more.
template <class T>
__global__ void beta_grad_kernel(GdnSizes n, GdnTokens<T> k, GdnTokens<T> kr, GdnTokens<T> v,
                                 GdnTokens<T> beta, const T* db, GdnTokens<T> k_grad, GdnTokens<T> kr_grad,
                                 GdnTokens<T> v_grad, T* dbeta) {
  const int64_t row = (int64_t(blockIdx.x) * kGdnRowThreads + threadIdx.x) / 32;
  if (row >= n.rows()) return;
  const int lane = int(threadIdx.x) % 32, h = int(row % n.h), token = int(row / n.h % n.s),
            frame = int(row / n.h / n.s);
  const GdnCell c((frame / n.t * n.h + h) * n.t + frame % n.t, n);
  const T *ki = k.at(c, token), *kri = kr.at(c, token), *vi = v.at(c, token), *add = db + c.row(n);
  T *dk = k_grad.at(c, token), *dkr = kr_grad.at(c, token), *dv = v_grad.at(c, token);
  const T weight = *beta.at(c, token);
  T sum = 0;
  for (int j = lane; j < n.d; j += 32) {
    sum += dk[j] * ki[j] + add[j] * ki[j] + dkr[j] * kri[j] + dv[j] * vi[j];
    dk[j] *= weight;
    dkr[j] *= weight;
    dv[j] *= weight;
  }
  sum = warp_reduce(sum, Plus{});
  if (lane == 0) dbeta[row] = T(0.5) * sum;
}

}  // namespace

void gdn_backward(const GdnInputs& in, bool reverse_scan, const GdnSaved& saved, const Tensor& out,
                  const Tensor& dout, const GdnState& dfinal, GdnInputs& grads) {
  const GdnSizes n(in.q);
  const Tensor x = empty_like(saved.m), y = empty_like(saved.z), e = empty_like(saved.m),
               e_z = empty_like(saved.z), l = empty_like(saved.m), l_z = empty_like(saved.z),
               dden = empty_like(saved.den), inverse = empty_like(saved.den), dp = empty_like(saved.p),
               dp_z = empty_like(saved.p), db = empty_like(saved.z);
  dispatch_real(in.q.dtype(), "gdn", [&]<class U>() {
    dispatch_tile<U>(n.d, [&]<class T, int kSize>() {
      const unsigned tiles = blocks_for(n.d, kSize),
                     token_tiles = unsigned(n.cells()) * blocks_for(n.s, kSize);
      const Launch rows({blocks_for(n.rows(), kGdnRowThreads / 32), kGdnRowThreads}),
          squares({dim3(unsigned(n.cells()), tiles * tiles), kTileThreads});
      const GdnTokens<T> k(in.k), kr(in.k_rot), v(in.v), beta(in.beta), inv(inverse);

      launch(rows, den_backward_kernel<T>, n, GdnTokens<T>(grads.q), GdnTokens<T>(out), GdnTokens<T>(dout),
             saved.z.data<T>(), saved.zr.data<T>(), saved.den.data<T>(), dden.data<T>(), inverse.data<T>());
      weigh_and_sum<T>(n, GdnTokens<T>(in.q), GdnTokens<T>(dden), y.data<T>());
      launch(squares, state_grad_kernel<T, kSize>, n, GdnTokens<T>(in.q_rot), GdnTokens<T>(dout), inv,
             x.data<T>());
      launch({dim3(token_tiles, tiles), kTileThreads}, query_grad_kernel<T, kSize>, n, GdnTokens<T>(dout),
             saved.m.data<T>(), saved.r.data<T>(), inv, GdnTokens<T>(grads.q_rot));

      std::vector<GdnChain<T>> chains = {{ChainOrder::around, n.d, saved.p.data<T>(), x.data<T>(),
                                          dfinal.kv.data<T>(), e.data<T>(), grads.start.kv.data<T>()},
                                         {ChainOrder::around, 1, saved.p_z.data<T>(), y.data<T>(),
                                          dfinal.z.data<T>(), e_z.data<T>(), grads.start.z.data<T>()}};
      if (reverse_scan) {
        chains.push_back(
            {ChainOrder::after, n.d, saved.p.data<T>(), x.data<T>(), nullptr, l.data<T>(), nullptr});
        chains.push_back(
            {ChainOrder::after, 1, saved.p_z.data<T>(), y.data<T>(), nullptr, l_z.data<T>(), nullptr});
      }
      run_chains<T>(n, in.decay.data<T>(), chains);

      const Chains<T> s{in.start.kv.data<T>(), in.start.z.data<T>(), saved.m.data<T>(), saved.z.data<T>(),
                        saved.r.data<T>(),     saved.zr.data<T>(),   e.data<T>(),       e_z.data<T>(),
                        l.data<T>(),           l_z.data<T>(),        reverse_scan};
      const Tensor pairs = empty_like(saved.p);
      launch(squares, pair_kernel<T, kSize>, n, s, pairs.data<T>());
      launch({unsigned(n.cells()), kThreads}, frame_grad_kernel<T>, n, s, pairs.data<T>(), saved.p.data<T>(),
             saved.p_z.data<T>(), in.decay.data<T>(), dp.data<T>(), dp_z.data<T>(), x.data<T>(), db.data<T>(),
             grads.decay.data<T>());

      const GdnTokens<T> dk(grads.k), dkr(grads.k_rot), dv(grads.v);
      launch({dim3(token_tiles, tiles, 3), kTileThreads}, token_grad_kernel<T, kSize>, n, k, kr, v,
             dp.data<T>(), dp_z.data<T>(), x.data<T>(), db.data<T>(), dk, dkr, dv);
      launch(rows, beta_grad_kernel<T>, n, k, kr, v, beta, db.data<T>(), dk, dkr, dv, grads.beta.data<T>());
    });
  });
}

}  // namespace rivulet::cuda
