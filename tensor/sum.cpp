// Sums over broadcast dims, in-place addition and the search for NaN, on the CPU.
#include <cmath>

#include "tensor/kernels.h"
#include "tensor/strided.h"

namespace rivulet::cpu {

void add_in_place(const Tensor& to, const Tensor& from, double scale) {
  const StridedLoop<2> loop(to.shape(),
                            {to.strides(), broadcast_strides(from.shape(), from.strides(), to.shape())});
  dispatch_floating(to.dtype(), "add_in_place", [&]<class T>() {
    using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
    T* const t0 = to.data<T>();
    const T* const f0 = from.data<T>();
    const Wide s = Wide(scale);
    loop.for_each_row([&](const std::array<int64_t, 2>& at, int64_t n) {
      T* t = t0 + at[0];
      const T* f = f0 + at[1];
      const int64_t ts = loop.inner(0), fs = loop.inner(1);
      if (ts == 1 && fs == 1)
        for (int64_t i = 0; i < n; ++i) t[i] = T(Wide(t[i]) + s * Wide(f[i]));
      else
        for (int64_t i = 0; i < n; ++i) t[i * ts] = T(Wide(t[i * ts]) + s * Wide(f[i * fs]));
    });
  });
}

void sum_to(const Tensor& out, const Tensor& g) {
  out.fill(0);
  const Shape& shape = out.shape();
  // Walk g with strides into `out` that are 0 along the broadcast dims, one output row at a time, so that
  // no two threads add to the same element: broadcast dims are moved innermost and summed serially.
  const Shape into = broadcast_strides(shape, out.strides(), g.shape());
  Shape kept, kept_g, kept_out, summed, summed_g;
  for (int i = 0; i < g.dims(); ++i) {
    const bool repeats = into[i] == 0;
    (repeats ? summed : kept).push_back(g.shape()[i]);
    (repeats ? summed_g : kept_g).push_back(g.strides()[i]);
    if (!repeats) kept_out.push_back(into[i]);
  }
  dispatch_floating(g.dtype(), "sum_to", [&]<class T>() {
    using Sum = std::conditional_t<is_half(dtype_of<T>::value), float, double>;
    const T* from = g.data<T>();
    T* to = out.data<T>();
    const StridedLoop<2> loop(kept, {kept_out, kept_g});
    const int64_t terms = summed.numel(), os = loop.inner(0), gs = loop.inner(1);
    loop.for_each_row([&](const std::array<int64_t, 2>& at, int64_t n) {
      std::vector<double> sums(size_t(n), 0.0);
      for (int64_t s = 0; s < terms; ++s) {
        int64_t rest = s, shift = at[1];
        for (int d = summed.size() - 1; d >= 0; --d) {
          shift += rest % summed[d] * summed_g[d];
          rest /= summed[d];
        }
        for (int64_t i = 0; i < n; ++i) sums[size_t(i)] += double(from[shift + i * gs]);
      }
      for (int64_t i = 0; i < n; ++i) to[at[0] + i * os] = T(Sum(sums[size_t(i)]));
    });
  });
}

bool has_nan(const Tensor& x) {
  for (double v : x.detach().to_vector())
    if (std::isnan(v)) return true;
  return false;
}

}  // namespace rivulet::cpu
