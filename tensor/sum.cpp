// The sum over chosen dims: the gradient of broadcasting, and the body of ops/reduce's sum.
//
// Work is cut into tiles of kept elements x pieces of the summed index. Cuts follow from the shape alone,
// pieces are added up in order, and sums go through f64 in short f32 blocks: the same bits on every
// machine, and long sums as good as short ones.
#include <cmath>

#include "tensor/kernels.h"
#include "tensor/strided.h"

namespace rivulet {
namespace {

// Part of a tensor's dims, merged, walked by one running index.
class Axes {
 public:
  Axes(const Shape& shape, const Shape& strides) : loop_(shape, {strides}), count_(shape.numel()) {}
  int64_t count() const { return count_; }
  int64_t run() const { return loop_.shape[loop_.shape.size() - 1]; }  // length and step of the innermost dim
  int64_t step() const { return loop_.inner(0); }
  int64_t offset(int64_t i) const {
    int64_t at = 0;
    for (int d = loop_.shape.size() - 1; d >= 0; --d) {
      at += i % loop_.shape[d] * loop_.strides[0][d];
      i /= loop_.shape[d];
    }
    return at;
  }

 private:
  StridedLoop<1> loop_;
  int64_t count_;
};

template <class T>
double sum_run(const T* p, int64_t step, int64_t n) {
  // Sixteen sums side by side whatever the width of the machine's vectors, so that the bits are the same.
  constexpr int64_t kBlock = 256, kLanes = 16;
  double total = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t m = std::min(kBlock, n - i), whole = m / kLanes * kLanes;
    const T* block = p + i * step;
    T lanes[kLanes] = {};
    if (step == 1) {
      for (int64_t j = 0; j < whole; j += kLanes)
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += block[j + l];
    } else {
      for (int64_t j = 0; j < whole; ++j) lanes[j % kLanes] += block[j * step];
    }
    for (int64_t j = whole; j < m; ++j) lanes[j % kLanes] += block[j * step];
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    total += double(lanes[0]);
  }
  return total;
}

// Summed elements [begin, end) of one kept element.
template <class T>
double sum_range(const T* base, const Axes& summed, int64_t begin, int64_t end) {
  double total = 0;
  for (int64_t i = begin; i < end;) {
    const int64_t n = std::min(end - i, summed.run() - i % summed.run());
    total += sum_run(base + summed.offset(i), summed.step(), n);
    i += n;
  }
  return total;
}

constexpr int64_t kCols = 256;  // neighbouring kept elements summed side by side

// Summed elements [begin, end) of n <= kCols kept neighbours.
template <class T>
void sum_columns(const T* base, const Axes& summed, int64_t begin, int64_t end, int64_t n, double* out) {
  constexpr int64_t kBlock = 32;
  std::fill(out, out + n, 0.0);
  for (int64_t i = begin; i < end; i += kBlock) {
    T block[kCols] = {};
    for (int64_t r = i; r < std::min(end, i + kBlock); ++r) {
      const T* row = base + summed.offset(r);
      for (int64_t j = 0; j < n; ++j) block[j] += row[j];
    }
    for (int64_t j = 0; j < n; ++j) out[j] += double(block[j]);
  }
}

template <class T>
void sum_axes(const T* from, const Axes& kept, const Axes& summed, T* to) {
  constexpr int64_t kPiece = 32768;
  const bool columns = kept.step() == 1 && kept.run() > 1 && summed.step() != 1;
  const int64_t side = columns ? std::min(kCols, kept.run()) : 1;
  const int64_t piece = std::max<int64_t>(1, kPiece / side);
  const int64_t pieces = std::max<int64_t>(1, (summed.count() + piece - 1) / piece);
  const int64_t tiles_per_run = (kept.run() + side - 1) / side;
  const int64_t tiles = columns ? kept.count() / kept.run() * tiles_per_run : kept.count();
  std::vector<double> partial(size_t(pieces > 1 ? pieces * kept.count() : 0));
  const int64_t work = std::max<int64_t>(1, side * std::min(piece, summed.count()));
  parallel_for(tiles * pieces, std::max<int64_t>(1, kPiece / work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t tile = task / pieces, p = task % pieces;
      const int64_t first = columns ? tile / tiles_per_run * kept.run() + tile % tiles_per_run * side : tile;
      const int64_t n = columns ? std::min(side, kept.run() - tile % tiles_per_run * side) : 1;
      const int64_t low = p * piece, high = std::min(summed.count(), low + piece);
      double sums[kCols];
      if (columns) {
        sum_columns(from + kept.offset(first), summed, low, high, n, sums);
      } else {
        sums[0] = sum_range(from + kept.offset(first), summed, low, high);
      }
      for (int64_t j = 0; j < n; ++j) {
        if (pieces > 1) {
          partial[size_t(p * kept.count() + first + j)] = sums[j];
        } else {
          to[first + j] = T(sums[j]);
        }
      }
    }
  });
  if (pieces == 1) return;
  parallel_for(kept.count(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      double total = 0;
      for (int64_t p = 0; p < pieces; ++p) total += partial[size_t(p * kept.count() + k)];
      to[k] = T(total);
    }
  });
}

}  // namespace

namespace cpu {

void sum_to(const Tensor& out, const Tensor& g) {
  const Shape& shape = out.shape();
  const int lead = g.dims() - shape.size();
  Shape kept, kept_strides, summed, summed_strides;
  for (int i = 0; i < g.dims(); ++i) {
    const bool gone = i < lead || (shape[i - lead] == 1 && g.shape()[i] != 1);
    (gone ? summed : kept).push_back(g.shape()[i]);
    (gone ? summed_strides : kept_strides).push_back(g.strides()[i]);
  }
  dispatch_real(g.dtype(), "sum_to", [&]<class T>() {
    sum_axes(g.data<T>(), Axes(kept, kept_strides), Axes(summed, summed_strides), out.data<T>());
  });
}

bool has_nan(const Tensor& x) {
  for (double v : x.detach().to_vector())
    if (std::isnan(v)) return true;
  return false;
}

}  // namespace cpu

Tensor sum_to(const Tensor& g, const Shape& shape) {
  if (g.shape() == shape) return g;
  check(broadcast_shapes(g.shape(), shape, "sum_to") == g.shape(), "sum_to: shape ", g.shape(), " to ",
        shape);
  const bool computed_in =
      g.dtype() != DType::f16 && (g.dtype() != DType::bf16 || g.device() == Device::cuda);
  if (!computed_in) return sum_to(g.to(DType::f32), shape).to(g.dtype());
  Tensor out(shape, g.dtype(), g.device());
  ON_DEVICE(g, sum_to(out, g));
  return out;
}

}  // namespace rivulet
