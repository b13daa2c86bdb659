#include "ops/gdn_decay.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

constexpr int kBlock = 1024;

struct Steps {
  int64_t batch, frame, token, head;
};

// A block per frame. Each thread sums some of the tokens of one head, and the first thread of every head adds
// up its sums in order.
template <class T>
__global__ void gdn_decay_kernel(const T* logits, Steps step, const T* dt_bias, const T* A_log, int frames,
                                 int tokens, int heads, Wide<T>* x, Wide<T>* decay) {
  __shared__ Wide<T> sums[kBlock];
  const int per_head = kBlock / heads, h = threadIdx.x % heads, part = threadIdx.x / heads;
  const T* from =
      logits + blockIdx.x / frames * step.batch + blockIdx.x % frames * step.frame + h * step.head;
  Wide<T> sum = 0;
  if (part < per_head)
#pragma unroll 8
    for (int s = part; s < tokens; s += per_head) sum += Wide<T>(from[s * step.token]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (part != 0) return;
  for (int p = 1; p < per_head; ++p) sum += sums[p * heads + h];
  const Wide<T> at = sum / Wide<T>(tokens) + Wide<T>(dt_bias[h]);
  const Wide<T> softplus = max(at, Wide<T>(0)) + log1p(exp(-abs(at)));
  x[blockIdx.x * heads + h] = at;
  decay[blockIdx.x * heads + h] = exp(-exp(Wide<T>(A_log[h])) * softplus);
}

}  // namespace

void gdn_decay(const Tensor& logits, const Tensor& dt_bias, const Tensor& A_log, Tensor& x, Tensor& decay) {
  const int64_t heads = logits.dim(3);
  check(heads <= kBlock, "gdn_decay: ", heads, " heads, at most ", kBlock, " are possible on the GPU");
  dispatch_float(logits.dtype(), "gdn_decay", [&]<class T>() {
    const Shape& s = logits.strides();
    launch({blocks_for(logits.dim(0) * logits.dim(1), 1), kBlock}, gdn_decay_kernel<T>, pointer<T>(logits),
           Steps{s[0], s[1], s[2], s[3]}, pointer<T>(dt_bias), pointer<T>(A_log), int(logits.dim(1)),
           int(logits.dim(2)), int(heads), pointer<Wide<T>>(x), pointer<Wide<T>>(decay));
  });
}

}  // namespace rivulet::cuda
