// What the CUDA phases of the gated delta net share.
#pragma once

#include "ops/gdn.h"
#include "ops/tile.cuh"

namespace rivulet::cuda {

struct GdnSizes {
  int b, t, s, h, d;
  explicit GdnSizes(const Tensor& q)
      : b(int(q.dim(0))), t(int(q.dim(1))), s(int(q.dim(2))), h(int(q.dim(3))), d(int(q.dim(4))) {}
  int cells() const { return b * h * t; }
  __host__ __device__ int64_t rows() const { return int64_t(b) * t * s * h; }
};

// One (batch, head, frame); index = (b * H + h) * T + f, the order of the saved states.
struct GdnCell {
  int b, h, f, index;
  __device__ GdnCell(int i, const GdnSizes& n) : b(i / n.t / n.h), h(i / n.t % n.h), f(i % n.t), index(i) {}
  // Where this cell's D x D matrix and its row of D values begin.
  __device__ int64_t square(const GdnSizes& n) const { return int64_t(index) * n.d * n.d; }
  __device__ int64_t row(const GdnSizes& n) const { return int64_t(index) * n.d; }
};

// A strided [B, T, S, H, D] or [B, T, S, H] tensor, read as the rows of a cell.
template <class T>
struct GdnTokens {
  T* p;
  int64_t step_b, step_t, step_s, step_h;
  explicit GdnTokens(const Tensor& x)
      : p(x.data<T>()),
        step_b(x.strides()[0]),
        step_t(x.strides()[1]),
        step_s(x.strides()[2]),
        step_h(x.strides()[3]) {}
  __device__ T* at(const GdnCell& c, int64_t token = 0) const {
    return p + c.b * step_b + c.f * step_t + c.h * step_h + token * step_s;
  }
};

// Tokens as the depth, each weighed: value(row, token) = weight[token] * x[token][row].
template <class T>
struct WeighedTokens {
  static constexpr bool dense_depth = false;
  const T* p;
  int64_t stride;
  const T* weight;
  int64_t weight_stride;
  int rows, depth;
  __device__ T operator()(int row, int k) const {
    if (row >= rows || k >= depth) return T(0);
    return weight[k * weight_stride] * p[k * stride + row];
  }
};

// The sum of two D x D matrices, zero outside.
template <class T, bool kDenseDepth>
struct SumOperand {
  static constexpr bool dense_depth = kDenseDepth;
  const T *p, *q;
  int stride, rows, depth;
  __device__ T operator()(int row, int k) const {
    if (row >= rows || k >= depth) return T(0);
    const int64_t at = kDenseDepth ? int64_t(row) * stride + k : int64_t(k) * stride + row;
    return p[at] + q[at];
  }
};

// How a chain of states walks through the frames; absorbing frame f is s <- g_f (I - P_f) s.
enum class ChainOrder {
  after,   // f = 0 .. T-1: absorb, add, keep       (states M; gradients L with start 0)
  before,  // f = T-1 .. 0: keep, absorb, add       (states R, own frame excluded)
  around   // f = T-1 .. 0: add, keep, absorb       (gradients E)
};
// State of `cols` columns per (batch, head). add and kept: [B*H, T, D, cols]; start (null: zeros) and end
// (null: not wanted): [B*H, cols, D].
template <class T>
struct GdnChain {
  ChainOrder order;
  int cols;
  const T *p, *add, *start;
  T *kept, *end;
};
// Runs the chains, each on its own, in one launch.
template <class T>
void run_chains(const GdnSizes& n, const T* decay, const std::vector<GdnChain<T>>& chains);
extern template void run_chains<float>(const GdnSizes&, const float*, const std::vector<GdnChain<float>>&);
extern template void run_chains<double>(const GdnSizes&, const double*, const std::vector<GdnChain<double>>&);

// out [B*H*T, D] = sum over a cell's tokens of weight * x
template <class T>
void weigh_and_sum(const GdnSizes& n, const GdnTokens<T>& x, const GdnTokens<T>& weight, T* out);
extern template void weigh_and_sum<float>(const GdnSizes&, const GdnTokens<float>&, const GdnTokens<float>&,
                                          float*);
extern template void weigh_and_sum<double>(const GdnSizes&, const GdnTokens<double>&,
                                           const GdnTokens<double>&, double*);

constexpr int kGdnRowThreads = 256;  // a warp per row of D values

}  // namespace rivulet::cuda
