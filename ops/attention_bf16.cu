#include "ops/attention_bf16.cuh"

#include "ops/wgmma.cuh"

namespace rivulet::cuda {
namespace {

int64_t padded(int64_t d) { return (d + 7) / 8 * 8; }

// x itself when the kernels can read it in place: rows of whole 16 bytes on 16-byte addresses. Otherwise a
// dense copy with the head dim padded by zeros, which change no score.
Tensor in_16_bytes(const Tensor& x) {
  bool fits = x.dim(3) % 8 == 0 && x.strides()[3] == 1 && is_aligned(x.raw(), 16);
  for (int i = 0; i < 3; ++i)
    fits = fits && (x.dim(i) == 1 || (x.strides()[i] > 0 && x.strides()[i] % 8 == 0));
  if (fits) return x;
  const int64_t d = x.dim(3);
  const Tensor to({x.dim(0), x.dim(1), x.dim(2), padded(d)}, x.dtype(), x.device());
  if (padded(d) != d) to.fill(0);
  to.slice(3, 0, d).copy_from(x);
  return to;
}

// Where a kernel writes what ends in `to`.
Tensor padded_like(const Tensor& to) {
  if (to.dim(3) % 8 == 0) return to;
  return Tensor({to.dim(0), to.dim(1), to.dim(2), padded(to.dim(3))}, to.dtype(), to.device());
}
void deliver(const Tensor& to, const Tensor& from) {
  if (to.dim(3) != from.dim(3)) to.copy_from(from.slice(3, 0, to.dim(3)));
}

ForwardInput input(const Tensor& q, const Tensors& k, const Tensors& v, double scale, const Tensor& mask) {
  ForwardInput in{in_16_bytes(q), {}, {}, float(scale), mask};
  for (size_t i = 0; i < k.size(); ++i) {
    in.k.push_back(in_16_bytes(k[i]));
    in.v.push_back(in_16_bytes(v[i]));
  }
  return in;
}

// stats[b, h, i] = (lse, dout_i . out_i), a warp per query. dout and out are dense.
__global__ void __launch_bounds__(kThreads)
    stats_kernel(int queries, int heads, int d, int stat_rows, int64_t rows, const __nv_bfloat16* dout,
                 const __nv_bfloat16* out, const float* lse, float2* stats) {
  const int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;  // bh * stat_rows + query
  if (row >= rows) return;
  const int lane = int(threadIdx.x) % 32, query = int(row % stat_rows);
  const int64_t bh = row / stat_rows;
  if (query >= queries) {
    if (lane == 0) stats[row] = make_float2(INFINITY, 0.f);
    return;
  }
  const int64_t at = ((bh / heads * queries + query) * heads + bh % heads) * d;
  float sum = 0;
  for (int c = 8 * lane; c < d; c += 256) {
    const auto g = load_pack(dout + at + c), y = load_pack(out + at + c);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += __bfloat162float(g.v[i]) * __bfloat162float(y.v[i]);
  }
  sum = warp_reduce(sum, Plus{});
  if (lane == 0) stats[row] = make_float2(lse[bh * queries + query], sum);
}

}  // namespace

void attention_bf16(const Tensor& q, const Tensors& k, const Tensors& v, double scale, const Tensor& mask,
                    const Tensor& out, const Tensor& lse) {
  if (q.numel() == 0) return;
  const ForwardInput in = input(q, k, v, scale, mask);
  const Tensor to = padded_like(out);
  has_wgmma() ? attention_wgmma(in, to, lse) : attention_mma(in, to, lse);
  deliver(out, to);
}

void attention_bf16_backward(const Tensor& dout, const Tensor& q, const Tensors& k, const Tensors& v,
                             double scale, const Tensor& mask, const Tensor& out, const Tensor& lse,
                             const Tensor& dq, const Tensors& dk, const Tensors& dv) {
  if (q.numel() == 0) {
    for (size_t i = 0; i < dk.size(); ++i) {
      dk[i].fill(0);
      dv[i].fill(0);
    }
    return;
  }
  BackwardInput in{input(q, k, v, scale, mask), in_16_bytes(dout), {}};
  const int64_t batch = q.dim(0), queries = q.dim(1), heads = q.dim(2);
  const int64_t stat_rows = (queries + kStatRows - 1) / kStatRows * kStatRows,
                rows = batch * heads * stat_rows;
  in.stats = Tensor({batch, heads, stat_rows, 2}, DType::f32, Device::cuda);
  const Tensor y = in_16_bytes(out);
  launch({blocks_for(rows, kThreads / 32), kThreads}, stats_kernel, int(queries), int(heads), int(y.dim(3)),
         int(stat_rows), rows, pointer<__nv_bfloat16>(in.dout), pointer<__nv_bfloat16>(y), lse.data<float>(),
         reinterpret_cast<float2*>(in.stats.data<float>()));
  const Tensor to_q = padded_like(dq);
  Tensors to_k, to_v;
  for (size_t i = 0; i < dk.size(); ++i) {
    to_k.push_back(padded_like(dk[i]));
    to_v.push_back(padded_like(dv[i]));
  }
  has_wgmma() ? attention_backward_wgmma(in, to_q, to_k, to_v) : attention_backward_mma(in, to_q, to_k, to_v);
  deliver(dq, to_q);
  for (size_t i = 0; i < dk.size(); ++i) {
    deliver(dk[i], to_k[i]);
    deliver(dv[i], to_v[i]);
  }
}

}  // namespace rivulet::cuda
