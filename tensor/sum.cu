// Sums over broadcast dims and the search for NaN, on the GPU. Every sum is taken in an
// order that depends on the shape alone, so runs repeat bit for bit.
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// --- sum_to --------------------------------------------------------------------------------------------
// Output o adds up `terms` elements of g; part p of a split sum takes the terms [p * each, (p + 1) * each)
// and writes to out[p * part_step + o]. Operands of `kept`: out, g. Operand of `summed`: g.
struct SumArguments {
  uint32_t outputs, terms, each;
  int64_t part_step;
  StridedIndex<2> kept;
  StridedIndex<1> summed;
};

template <class Out, class In, int kWarps>
__global__ void sum_rows(Out* out, const In* g, SumArguments a) {
  const uint32_t o = kWarps == 1 ? blockIdx.x * blockDim.y + threadIdx.y : blockIdx.x;
  if (o >= a.outputs) return;  // whole warps, or whole blocks
  int64_t at[2], shift[1];
  a.kept.at(o, at);
  const uint32_t begin = blockIdx.y * a.each, end = min(begin + a.each, a.terms);
  Wide<In> sum = 0;
  for (uint32_t t = begin + threadIdx.x; t < end; t += 32 * kWarps) {
    a.summed.at(t, shift);
    sum += Wide<In>(g[at[1] + shift[0]]);
  }
  sum = block_sum<kWarps>(sum);
  if (threadIdx.x == 0) out[blockIdx.y * a.part_step + at[0]] = convert<Out>(sum);
}

// Neighbouring threads take neighbouring outputs; the kLanes rows of the block share the terms.
constexpr int kLanes = 8;
template <class Out, class In>
__global__ void sum_columns(Out* out, const In* g, SumArguments a) {
  __shared__ Wide<In> parts[kLanes][32];
  const uint32_t o = blockIdx.x * 32 + threadIdx.x;
  int64_t at[2] = {0, 0}, shift[1];
  Wide<In> sum = 0;
  if (o < a.outputs) {
    a.kept.at(o, at);
    const uint32_t begin = blockIdx.y * a.each, end = min(begin + a.each, a.terms);
    for (uint32_t t = begin + threadIdx.y; t < end; t += kLanes) {
      a.summed.at(t, shift);
      sum += Wide<In>(g[at[1] + shift[0]]);
    }
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || o >= a.outputs) return;
  for (int y = 1; y < kLanes; ++y) sum += parts[y][threadIdx.x];
  out[blockIdx.y * a.part_step + at[0]] = convert<Out>(sum);
}

template <class Out, class In>
void launch_sum(Out* out, const In* g, const SumArguments& a, bool rows, unsigned parts) {
  if (!rows)
    launch({dim3(blocks_for(a.outputs, 32), parts), dim3(32, kLanes)}, sum_columns<Out, In>, out, g, a);
  else if (a.each <= 1024)
    launch({dim3(blocks_for(a.outputs, 8), parts), dim3(32, 8)}, sum_rows<Out, In, 1>, out, g, a);
  else
    launch({dim3(a.outputs, parts), dim3(256)}, sum_rows<Out, In, 8>, out, g, a);
}

// Columns of a dense matrix, a pack of them per thread: partial[part, column] sums the rows of one part. The
// kLanes rows of the block share them.
template <class In>
__global__ void sum_packs(Wide<In>* partial, const In* g, int64_t rows, int64_t each, int64_t columns,
                          int64_t row_step) {
  constexpr int P = kPack<In>, kAhead = 4;
  __shared__ Wide<In> parts[kLanes][32][P + 1];
  const int64_t column = (int64_t(blockIdx.x) * 32 + threadIdx.x) * P;
  Wide<In> sum[P] = {};
  if (column < columns) {
    const int64_t end = min(rows, (blockIdx.y + 1) * each);
    int64_t row = blockIdx.y * each + threadIdx.y;
    for (; row + (kAhead - 1) * kLanes < end; row += kAhead * kLanes) {
      Pack<In, P> x[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) x[a] = load_pack<In, P>(g + (row + a * kLanes) * row_step + column);
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
#pragma unroll
        for (int k = 0; k < P; ++k) sum[k] += Wide<In>(x[a].v[k]);
    }
    for (; row < end; row += kLanes) {
      const auto x = load_pack<In, P>(g + row * row_step + column);
#pragma unroll
      for (int k = 0; k < P; ++k) sum[k] += Wide<In>(x.v[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < P; ++k) parts[threadIdx.y][threadIdx.x][k] = sum[k];
  __syncthreads();
  // Row y of the block finishes the y-th column of every pack (and every kLanes-th after it).
  if (column >= columns) return;
  for (int k = int(threadIdx.y); k < P; k += kLanes) {
    Wide<In> total = 0;
    for (int y = 0; y < kLanes; ++y) total += parts[y][threadIdx.x][k];
    partial[blockIdx.y * columns + column + k] = total;
  }
}

// Both stages of one sum. A sum of many terms into few outputs is split, so that it fills the GPU.
template <class T>
void sum_strided(const Tensor& out, const Tensor& g, const StridedLoop<2>& kept,
                 const StridedLoop<1>& summed) {
  const int64_t outputs = kept.shape.numel(), terms = summed.shape.numel();
  constexpr int64_t P = kPack<T>;
  const bool columns = kept.shape.size() == 1 && kept.strides[0][0] == 1 && kept.strides[1][0] == 1 &&
                       summed.shape.size() == 1 && terms >= 64 && outputs % P == 0 &&
                       summed.inner(0) % P == 0 && is_aligned(pointer<T>(g), 16);
  if (columns) {
    const int64_t groups = (outputs / P + 31) / 32;
    const int64_t parts = std::clamp<int64_t>(1024 / groups, 1, (terms + 31) / 32);
    const int64_t each = (terms + parts - 1) / parts;
    const Tensor partial({parts, outputs}, std::is_same_v<T, double> ? DType::f64 : DType::f32, Device::cuda);
    launch({dim3(unsigned(groups), unsigned(parts)), dim3(32, kLanes)}, sum_packs<T>,
           pointer<Wide<T>>(partial), pointer<T>(g), terms, each, outputs, summed.inner(0));
    const StridedLoop<2> finish(kept.shape, {kept.strides[0], kept.strides[1]});
    const StridedLoop<1> over_parts(Shape{parts}, {Shape{outputs}});
    return launch_sum(pointer<T>(out), pointer<Wide<T>>(partial),
                      SumArguments{uint32_t(outputs), uint32_t(parts), uint32_t(parts), 0,
                                   StridedIndex<2>(finish), StridedIndex<1>(over_parts)},
                      false, 1);
  }
  const bool rows = outputs < 8 || (summed.inner(0) == 1 && terms >= 8);
  const int64_t blocks = rows ? outputs : (outputs + 31) / 32;
  const int64_t parts =
      std::clamp<int64_t>(std::min(terms / 2048, 512 / std::max<int64_t>(blocks, 1)), 1, 256);
  SumArguments a{uint32_t(outputs),     uint32_t(terms),        uint32_t((terms + parts - 1) / parts), 0,
                 StridedIndex<2>(kept), StridedIndex<1>(summed)};
  T* to = pointer<T>(out);
  const T* from = pointer<T>(g);
  if (parts == 1) return launch_sum(to, from, a, rows, 1);
  // Partial sums [parts, outputs], in the order of the outputs; then one sum over the parts.
  const Tensor partial({parts, outputs}, std::is_same_v<T, double> ? DType::f64 : DType::f32, Device::cuda);
  a.part_step = outputs;
  const StridedLoop<2> in_order(kept.shape, {contiguous_strides(kept.shape), kept.strides[1]});
  SumArguments first = a;
  first.kept = StridedIndex<2>(in_order);
  launch_sum(pointer<Wide<T>>(partial), from, first, rows, unsigned(parts));
  const StridedLoop<2> again(kept.shape, {kept.strides[0], contiguous_strides(kept.shape)});
  const StridedLoop<1> over_parts(Shape{parts}, {Shape{outputs}});
  launch_sum(to, pointer<Wide<T>>(partial),
             SumArguments{uint32_t(outputs), uint32_t(parts), uint32_t(parts), 0, StridedIndex<2>(again),
                          StridedIndex<1>(over_parts)},
             false, 1);
}

// --- has_nan ---------------------------------------------------------------------------------------------
template <class T>
__global__ void find_nan(const T* x, int64_t n, int* found) {
  bool here = false;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    here |= isnan(Wide<T>(x[i]));
  if (here) *found = 1;  // every writer writes the same
}

}  // namespace

void sum_to(const Tensor& out, const Tensor& g) {
  const Shape into = broadcast_strides(out.shape(), out.strides(), g.shape());
  Shape kept, kept_out, kept_g, summed, summed_g;
  for (int i = 0; i < g.dims(); ++i) {
    const bool repeats = into[i] == 0;
    (repeats ? summed : kept).push_back(g.shape()[i]);
    (repeats ? summed_g : kept_g).push_back(g.strides()[i]);
    if (!repeats) kept_out.push_back(into[i]);
  }
  if (out.numel() == 0) return;
  if (g.numel() == 0) return fill(out, 0);
  const StridedLoop<2> kept_loop(kept, {kept_out, kept_g});
  const StridedLoop<1> summed_loop(summed, {summed_g});
  dispatch_float(g.dtype(), "sum_to", [&]<class T>() { sum_strided<T>(out, g, kept_loop, summed_loop); });
}

bool has_nan(const Tensor& x) {
  if (x.numel() == 0) return false;
  const Tensor dense = x.detach().contiguous();
  const Tensor found = zeros({1}, DType::i32, Device::cuda);
  const int64_t n = dense.numel();
  const unsigned blocks = unsigned(std::min<int64_t>(blocks_for(n, kThreads), 1024));
  if (dense.dtype() == DType::f16)
    launch({blocks, kThreads}, find_nan<__half>, pointer<__half>(dense), n, pointer<int>(found));
  else
    dispatch_float(dense.dtype(), "has_nan", [&]<class T>() {
      launch({blocks, kThreads}, find_nan<T>, pointer<T>(dense), n, pointer<int>(found));
    });
  return found.item() != 0;
}

}  // namespace rivulet::cuda
