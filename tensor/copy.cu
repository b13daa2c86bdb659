// Strided copies, conversions, fills and in-place addition on the GPU.
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

using Words = StridedLoop<2>;  // operand 0 is written, 1 is read

// A walk longer than an index can count is halved along its longest dim until it is not.
template <class F>
void in_parts(const Words& loop, int64_t to_shift, int64_t from_shift, F&& f) {
  if (loop.shape.numel() <= 0x7fffffff) return f(loop, to_shift, from_shift);
  int longest = 0;
  for (int d = 1; d < loop.shape.size(); ++d)
    if (loop.shape[d] > loop.shape[longest]) longest = d;
  Words first = loop, second = loop;
  first.shape[longest] = loop.shape[longest] / 2;
  second.shape[longest] -= first.shape[longest];
  in_parts(first, to_shift, from_shift, f);
  in_parts(second, to_shift + first.shape[longest] * loop.strides[0][longest],
           from_shift + first.shape[longest] * loop.strides[1][longest], f);
}

template <class To, class From>
__global__ void convert_dense(To* to, const From* from, int64_t n) {
  constexpr int kEach = 4;
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kEach;
  if (i + kEach <= n) {
    const Pack<From, kEach> x = load_pack<From, kEach>(from + i);
    Pack<To, kEach> y;
#pragma unroll
    for (int k = 0; k < kEach; ++k) y.v[k] = convert<To>(x.v[k]);
    store_pack<To, kEach>(to + i, y);
  } else {
    for (int64_t k = i; k < n; ++k) to[k] = convert<To>(from[k]);
  }
}

template <class To, class From>
__global__ void convert_strided(To* to, const From* from, uint32_t n, StridedIndex<2> index) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int64_t at[2];
  index.at(i, at);
  to[at[0]] = convert<To>(from[at[1]]);
}

template <class To, class From>
void convert_loop(To* to, const From* from, const Words& loop) {
  if constexpr (!std::is_same_v<To, From>) {
    const bool dense = loop.shape.size() == 1 && loop.inner(0) == 1 && loop.inner(1) == 1;
    if (dense && is_aligned(to, 4 * sizeof(To)) && is_aligned(from, 4 * sizeof(From)))
      return launch({blocks_for(loop.shape[0], 4 * kThreads), kThreads}, convert_dense<To, From>, to, from,
                    loop.shape[0]);
  }
  in_parts(loop, 0, 0, [&](const Words& part, int64_t to_shift, int64_t from_shift) {
    const int64_t n = part.shape.numel();
    launch({blocks_for(n, kThreads), kThreads}, convert_strided<To, From>, to + to_shift, from + from_shift,
           uint32_t(n), StridedIndex<2>(part));
  });
}

// A transposing copy through a tile, so that both sides move whole lines: `to` is dense along the inner
// dim of `rows` elements, `from` along the dim of `cols`; `outer` walks the rest.
constexpr int kTile = 32, kTileRows = 8;
template <class Word>
__global__ void copy_transposed(Word* to, const Word* from, int64_t rows, int64_t cols, int64_t to_step,
                                int64_t from_step, uint32_t row_tiles, uint32_t col_tiles,
                                StridedIndex<2> outer) {
  __shared__ Word tile[kTile][kTile + 1];
  const uint32_t tiles = row_tiles * col_tiles, batch = blockIdx.x / tiles, t = blockIdx.x % tiles;
  int64_t at[2];
  outer.at(batch, at);
  const int64_t row0 = int64_t(t % row_tiles) * kTile, col0 = int64_t(t / row_tiles) * kTile;
  for (int y = threadIdx.y; y < kTile; y += kTileRows) {
    const int64_t r = row0 + y, c = col0 + threadIdx.x;
    if (r < rows && c < cols) tile[y][threadIdx.x] = from[at[1] + r * from_step + c];
  }
  __syncthreads();
  for (int y = threadIdx.y; y < kTile; y += kTileRows) {
    const int64_t r = row0 + threadIdx.x, c = col0 + y;
    if (r < rows && c < cols) to[at[0] + c * to_step + r] = tile[threadIdx.x][y];
  }
}

// The dim along which `from` is dense, when the copy is a transpose worth a tile; else -1.
int transposed_dim(const Words& loop) {
  const int inner = loop.shape.size() - 1;
  if (loop.inner(0) != 1 || loop.inner(1) <= 1 || loop.shape[inner] < 8) return -1;
  for (int d = 0; d < inner; ++d)
    if (loop.strides[1][d] == 1 && loop.shape[d] >= 8) return d;
  return -1;
}

template <class Word>
void transpose_loop(Word* to, const Word* from, const Words& loop, int dim) {
  const int inner = loop.shape.size() - 1;
  const int64_t rows = loop.shape[inner], cols = loop.shape[dim];
  Words outer = loop;
  outer.shape[inner] = outer.shape[dim] = 1;
  const int64_t row_tiles = (rows + kTile - 1) / kTile, col_tiles = (cols + kTile - 1) / kTile;
  launch({blocks_for(outer.shape.numel() * row_tiles * col_tiles, 1), dim3(kTile, kTileRows)},
         copy_transposed<Word>, to, from, rows, cols, loop.strides[0][dim], loop.strides[1][inner],
         uint32_t(row_tiles), uint32_t(col_tiles), StridedIndex<2>(outer));
}

// Moves the elements as words of `width` bytes when every run and address allows it.
bool widen(Words& loop, const void* to, const void* from, int64_t size, int64_t width) {
  const int64_t w = width / size;
  const int inner = loop.shape.size() - 1;
  if (loop.inner(0) != 1 || loop.inner(1) != 1 || loop.shape[inner] % w != 0) return false;
  if (!is_aligned(to, width) || !is_aligned(from, width)) return false;
  for (int d = 0; d < inner; ++d)
    if (loop.strides[0][d] % w != 0 || loop.strides[1][d] % w != 0) return false;
  loop.shape[inner] /= w;
  for (int d = 0; d < inner; ++d)
    for (Shape& s : loop.strides) s[d] /= w;
  return true;
}

template <class Word>
void copy_words(const Tensor& to, const Tensor& from, const Words& loop) {
  convert_loop(static_cast<Word*>(to.raw()), static_cast<const Word*>(from.raw()), loop);
}

void copy_same(const Tensor& to, const Tensor& from, Words loop) {
  const int64_t size = size_of(to.dtype());
  if (loop.shape.size() == 1 && loop.inner(0) == 1 && loop.inner(1) == 1)
    return cuda_check(
        cudaMemcpyAsync(to.raw(), from.raw(), size_t(to.bytes()), cudaMemcpyDeviceToDevice, stream()));
  if (const int dim = transposed_dim(loop); dim >= 0) {
    const auto go = [&]<class Word>() {
      transpose_loop(static_cast<Word*>(to.raw()), static_cast<const Word*>(from.raw()), loop, dim);
    };
    return size == 8   ? go.operator()<uint64_t>()
           : size == 4 ? go.operator()<uint32_t>()
           : size == 2 ? go.operator()<uint16_t>()
                       : go.operator()<uint8_t>();
  }
  if (widen(loop, to.raw(), from.raw(), size, 16)) return copy_words<uint4>(to, from, loop);
  if (size == 8 || widen(loop, to.raw(), from.raw(), size, 8)) return copy_words<uint64_t>(to, from, loop);
  if (size == 4 || widen(loop, to.raw(), from.raw(), size, 4)) return copy_words<uint32_t>(to, from, loop);
  if (size == 2) return copy_words<uint16_t>(to, from, loop);
  copy_words<uint8_t>(to, from, loop);
}

template <class Word>
__global__ void fill_strided(Word* to, Word value, uint32_t n, StridedIndex<2> index) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int64_t at[2];
  index.at(i, at);
  to[at[0]] = value;
}

template <class Word>
void fill_words(const Tensor& to, const Tensor& one, const Words& loop) {
  const Word value = *static_cast<const Word*>(one.raw());
  in_parts(loop, 0, 0, [&](const Words& part, int64_t shift, int64_t) {
    const int64_t n = part.shape.numel();
    launch({blocks_for(n, kThreads), kThreads}, fill_strided<Word>, static_cast<Word*>(to.raw()) + shift,
           value, uint32_t(n), StridedIndex<2>(part));
  });
}

template <class T>
__device__ T add_scaled(T t, T f, Wide<T> scale) {
  return convert<T>(Wide<T>(t) + scale * Wide<T>(f));
}

template <class T>
__global__ void add_dense(T* to, const T* from, Wide<T> scale, int64_t n) {
  constexpr int kEach = kPack<T>;
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kEach;
  if (i + kEach <= n) {
    Pack<T, kEach> t = load_pack(to + i);
    const Pack<T, kEach> f = load_pack(from + i);
#pragma unroll
    for (int k = 0; k < kEach; ++k) t.v[k] = add_scaled(t.v[k], f.v[k], scale);
    store_pack(to + i, t);
  } else {
    for (int64_t k = i; k < n; ++k) to[k] = add_scaled(to[k], from[k], scale);
  }
}

template <class T>
__global__ void add_strided(T* to, const T* from, Wide<T> scale, uint32_t n, StridedIndex<2> index) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int64_t at[2];
  index.at(i, at);
  to[at[0]] = add_scaled(to[at[0]], from[at[1]], scale);
}

}  // namespace

void copy(const Tensor& to, const Tensor& from) {
  if (to.numel() == 0) return;
  const Words loop(to.shape(), {to.strides(), broadcast_strides(from.shape(), from.strides(), to.shape())});
  if (to.dtype() == from.dtype()) return copy_same(to, from, loop);
  dispatch_any(to.dtype(), "copy_from", [&]<class To>() {
    dispatch_any(from.dtype(), "copy_from", [&]<class From>() {
      using T = typename OnDevice<To>::type;
      using F = typename OnDevice<From>::type;
      if constexpr (!std::is_same_v<To, From>)
        convert_loop(static_cast<T*>(to.raw()), static_cast<const F*>(from.raw()), loop);
    });
  });
}

void fill(const Tensor& to, double value) {
  if (value == 0 && to.is_contiguous())
    return cuda_check(cudaMemsetAsync(to.raw(), 0, size_t(to.bytes()), stream()));
  // The bits are the CPU's own conversion of the value, sent along as a kernel argument.
  const Tensor one(Shape{}, to.dtype());
  cpu::fill(one, value);
  if (to.numel() == 0) return;
  const Words loop(to.shape(), {to.strides(), broadcast_strides({}, {}, to.shape())});
  switch (size_of(to.dtype())) {
    case 8:
      return fill_words<uint64_t>(to, one, loop);
    case 4:
      return fill_words<uint32_t>(to, one, loop);
    case 2:
      return fill_words<uint16_t>(to, one, loop);
    default:
      return fill_words<uint8_t>(to, one, loop);
  }
}

void add_in_place(const Tensor& to, const Tensor& from, double scale) {
  const int64_t n = to.numel();
  if (n == 0) return;
  const StridedLoop<2> loop(to.shape(),
                            {to.strides(), broadcast_strides(from.shape(), from.strides(), to.shape())});
  dispatch_float(to.dtype(), "add_in_place", [&]<class T>() {
    T* t = pointer<T>(to);
    const T* f = pointer<T>(from);
    const bool dense = loop.shape.size() == 1 && loop.inner(0) == 1 && loop.inner(1) == 1;
    if (dense && is_aligned(t, 16) && is_aligned(f, 16))
      return launch({blocks_for(n, kPack<T> * kThreads), kThreads}, add_dense<T>, t, f, scale, n);
    launch({blocks_for(n, kThreads), kThreads}, add_strided<T>, t, f, scale, n, StridedIndex<2>(loop));
  });
}

}  // namespace rivulet::cuda
