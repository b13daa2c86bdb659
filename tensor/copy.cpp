// Strided copies, conversions, fills and in-place addition on the CPU.
#include <cstring>

#include "tensor/kernels.h"
#include "tensor/strided.h"

namespace rivulet::cpu {
namespace {

template <class To, class From>
void copy_run(To* to, int64_t to_step, const From* from, int64_t from_step, int64_t n) {
  const auto convert = [](From x) -> To {
    if constexpr (std::is_same_v<To, From>)
      return x;
    else if constexpr (std::is_same_v<To, bf16> || std::is_same_v<To, f16>)
      return To(static_cast<float>(x));
    else if constexpr (std::is_same_v<From, bf16> || std::is_same_v<From, f16>)
      return static_cast<To>(static_cast<float>(x));
    else
      return static_cast<To>(x);
  };
  if (to_step == 1 && from_step == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = convert(from[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i * to_step] = convert(from[i * from_step]);
}

// A copy where the dim that is dense on one side is another than on the other: element by element, most of
// every cache line would be fetched in vain, so both dims are walked in square tiles.
// Gives the dim that is dense where the innermost is not, or -1 for other copies.
int transposed_dim(const StridedLoop<2>& loop) {
  const int inner = loop.shape.size() - 1;
  if ((loop.inner(0) == 1) == (loop.inner(1) == 1) || loop.shape[inner] < 8) return -1;
  const Shape& strided = loop.strides[loop.inner(0) == 1 ? 1 : 0];
  for (int d = 0; d < inner; ++d)
    if (strided[d] == 1 && loop.shape[d] >= 8) return d;
  return -1;
}

template <class Word>
void copy_tiles(Word* to, const Word* from, const StridedLoop<2>& loop, int across) {
  constexpr int64_t kTile = 32;
  const int inner = loop.shape.size() - 1;
  const int64_t rows = loop.shape[across], cols = loop.shape[inner];
  const int64_t strips = (rows + kTile - 1) / kTile;
  const Shape &ts = loop.strides[0], &fs = loop.strides[1];
  const int64_t outer = loop.shape.numel() / std::max<int64_t>(1, rows * cols);
  parallel_for(outer * strips, std::max<int64_t>(1, 1024 / cols), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % strips * kTile, last = std::min(rows, first + kTile);
      int64_t rest = task / strips, t0 = 0, f0 = 0;
      for (int d = inner - 1; d >= 0; --d) {
        if (d == across) continue;
        t0 += rest % loop.shape[d] * ts[d];
        f0 += rest % loop.shape[d] * fs[d];
        rest /= loop.shape[d];
      }
      for (int64_t c = 0; c < cols; c += kTile) {
        const int64_t stop = std::min(cols, c + kTile);
        for (int64_t i = first; i < last; ++i)
          copy_run(to + t0 + i * ts[across] + c * ts[inner], ts[inner],
                   from + f0 + i * fs[across] + c * fs[inner], fs[inner], stop - c);
      }
    }
  });
}

// Same-dtype copies move whole words, so they need no type and serve the storage-only formats too.
template <class Word>
void copy_words(const Tensor& to, const Tensor& from, const StridedLoop<2>& loop) {
  auto* t = static_cast<Word*>(to.raw());
  const auto* f = static_cast<const Word*>(from.raw());
  if (const int across = transposed_dim(loop); across >= 0) return copy_tiles(t, f, loop, across);
  loop.for_each_row([&](const std::array<int64_t, 2>& at, int64_t n) {
    copy_run(t + at[0], loop.inner(0), f + at[1], loop.inner(1), n);
  });
}

void copy_same(const Tensor& to, const Tensor& from, const StridedLoop<2>& loop) {
  switch (size_of(to.dtype())) {
    case 8:
      return copy_words<uint64_t>(to, from, loop);
    case 4:
      return copy_words<uint32_t>(to, from, loop);
    case 2:
      return copy_words<uint16_t>(to, from, loop);
    default:
      return copy_words<uint8_t>(to, from, loop);
  }
}

}  // namespace

void copy(const Tensor& to, const Tensor& from) {
  const StridedLoop<2> loop(to.shape(),
                            {to.strides(), broadcast_strides(from.shape(), from.strides(), to.shape())});
  if (to.dtype() == from.dtype()) return copy_same(to, from, loop);
  dispatch_any(to.dtype(), "copy_from", [&]<class To>() {
    dispatch_any(from.dtype(), "copy_from", [&]<class From>() {
      To* t = to.data<To>();
      const From* f = from.data<From>();
      loop.for_each_row([&](const std::array<int64_t, 2>& at, int64_t n) {
        copy_run(t + at[0], loop.inner(0), f + at[1], loop.inner(1), n);
      });
    });
  });
}

void fill(const Tensor& to, double value) {
  const Tensor one(Shape{}, to.dtype());
  dispatch_any(to.dtype(), "fill", [&]<class T>() {
    if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>)
      *one.data<T>() = T(float(value));
    else
      *one.data<T>() = static_cast<T>(value);
  });
  copy(to, one);
}

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

}  // namespace rivulet::cpu
