#include "ops/embedding.h"

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// `bad` ends as the first place with an id outside the table, or stays as it was.
__global__ void check_ids(const int64_t* ids, int64_t n, int64_t vocabulary, unsigned long long* bad) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n && (ids[i] < 0 || ids[i] >= vocabulary)) atomicMin(bad, static_cast<unsigned long long>(i));
}

// Rows are moved as words: their type does not matter.
template <class Word>
__global__ void gather_rows(const int64_t* ids, const Word* table, Word* y, int64_t words) {
  const Word* from = table + ids[blockIdx.x] * words;
  Word* to = y + blockIdx.x * words;
  for (int64_t j = threadIdx.x; j < words; j += blockDim.x) to[j] = from[j];
}

// The block of the first place of an id adds up all its places, in order, for 256 columns.
template <class T>
__global__ void scatter_sums(const T* g, const int64_t* ids, T* dtable, int64_t n, int64_t c) {
  const int64_t first = blockIdx.x, id = ids[first], j = int64_t(blockIdx.y) * blockDim.x + threadIdx.x;
  bool seen = false;
  for (int64_t i = threadIdx.x; i < first; i += blockDim.x) seen |= ids[i] == id;
  if (__syncthreads_or(seen) || j >= c) return;
  T sum = 0;
  for (int64_t i = first; i < n; ++i)
    if (ids[i] == id) sum += g[i * c + j];
  dtable[id * c + j] = sum;
}

}  // namespace

void embedding(const Tensor& ids, const Tensor& table, Tensor& y) {
  const int64_t n = ids.numel();
  const Tensor bad({1}, DType::i64, Device::cuda);
  bad.fill(double(n));
  launch({blocks_for(n, kThreads), kThreads}, check_ids, pointer<int64_t>(ids), n, table.dim(0),
         pointer<unsigned long long>(bad));
  const int64_t first = int64_t(bad.item());
  if (first < n)
    fail("embedding: id ", ids.slice(0, first, first + 1).item(), " at ", first, ", the table has ",
         table.dim(0), " rows");
  const int64_t row_bytes = table.dim(1) * size_of(table.dtype());
  const auto gather = [&]<class Word>() {
    launch({unsigned(n), kThreads}, gather_rows<Word>, pointer<int64_t>(ids), pointer<Word>(table),
           pointer<Word>(y), row_bytes / int64_t(sizeof(Word)));
  };
  const bool packs = row_bytes % 16 == 0 && is_aligned(table.raw(), 16) && is_aligned(y.raw(), 16);
  packs ? gather.operator()<uint4>() : gather.operator()<uint16_t>();
}

void embedding_backward(const Tensor& g, const Tensor& ids, Tensor& dtable) {
  const int64_t n = ids.numel(), c = dtable.dim(1);
  if (n == 0 || c == 0) return;
  dispatch_real(g.dtype(), "embedding", [&]<class T>() {
    launch({dim3(unsigned(n), blocks_for(c, kThreads)), kThreads}, scatter_sums<T>, pointer<T>(g),
           pointer<int64_t>(ids), pointer<T>(dtable), n, c);
  });
}

}  // namespace rivulet::cuda
