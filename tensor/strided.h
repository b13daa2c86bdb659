// Walking several same-shaped strided tensors together: the inner loop of every copy and fallback path.
#pragma once

#include "tensor/parallel.h"
#include "tensor/shape.h"

namespace rivulet {

// A shape and K stride lists with size-1 dims dropped and mergeable neighbours merged; at least one dim.
template <int K>
struct StridedLoop {
  Shape shape;
  std::array<Shape, K> strides;

  StridedLoop(const Shape& full, const std::array<Shape, K>& full_strides) {
    for (int i = 0; i < full.size(); ++i) {
      if (full[i] == 1) continue;
      if (shape.size() > 0 && merges(full, full_strides, i)) {
        const int last = shape.size() - 1;
        shape[last] *= full[i];
        for (int k = 0; k < K; ++k) strides[k][last] = full_strides[k][i];
      } else {
        shape.push_back(full[i]);
        for (int k = 0; k < K; ++k) strides[k].push_back(full_strides[k][i]);
      }
    }
    if (shape.size() == 0) {
      shape.push_back(1);
      for (int k = 0; k < K; ++k) strides[k].push_back(0);
    }
  }

  // row(offsets[K], n): runs of n elements along the innermost dim, strides given by inner(k). Long runs
  // come in pieces, so that one dense tensor is shared out too.
  template <class F>
  void for_each_row(F&& row) const {
    constexpr int64_t kPiece = 32768;
    const int inner_dim = shape.size() - 1;
    const int64_t n = shape[inner_dim], cuts = (n + kPiece - 1) / kPiece;
    const int64_t rows = n == 0 ? 0 : shape.numel() / n;
    parallel_for(rows * cuts, std::max<int64_t>(1, kPiece / std::max<int64_t>(n, 1)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     const int64_t first = r % cuts * kPiece;
                     std::array<int64_t, K> offset;
                     for (int k = 0; k < K; ++k) offset[k] = first * strides[k][inner_dim];
                     int64_t rest = r / cuts;
                     for (int d = inner_dim - 1; d >= 0; --d) {
                       const int64_t i = rest % shape[d];
                       rest /= shape[d];
                       for (int k = 0; k < K; ++k) offset[k] += i * strides[k][d];
                     }
                     row(offset, std::min(kPiece, n - first));
                   }
                 });
  }
  int64_t inner(int k) const { return strides[k][shape.size() - 1]; }

 private:
  // True when dim i continues the last kept dim in every stride list.
  bool merges(const Shape& full, const std::array<Shape, K>& s, int i) const {
    for (int k = 0; k < K; ++k)
      if (strides[k][shape.size() - 1] != s[k][i] * full[i]) return false;
    return true;
  }
};

// Strides that read `from` as if it had the broadcast shape `to` (0 where it repeats).
inline Shape broadcast_strides(const Shape& from, const Shape& strides, const Shape& to) {
  Shape out = to;
  const int lead = to.size() - from.size();
  for (int i = 0; i < to.size(); ++i) out[i] = i < lead || from[i - lead] == 1 ? 0 : strides[i - lead];
  return out;
}

}  // namespace rivulet
