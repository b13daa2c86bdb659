// Softmax attention, computed in tiles: no array of the size queries x keys is ever made.
//
//   p[i, j] = exp(scale q_i . k_j) / sum_j' exp(scale q_i . k_j'),   out_i = sum_j p[i, j] v_j
//
// Saves the log-sum-exp of every query row. With delta_i = dout_i . out_i:
//   dv_j = sum_i p[i, j] dout_i,   ds[i, j] = scale p[i, j] (dout_i . v_j - delta_i),
//   dq_i = sum_j ds[i, j] k_j,     dk_j = sum_i ds[i, j] q_i.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// q [B, N, H, D], k and v [B, M, H, D], all of one dtype -> [B, N, H, D]. Any strides; read in place when
// the last dim is dense (slices of a fused q|k|v tensor are). key_mask [B, M] u8: 1 = attend; a query
// that may attend to nothing gives zeros and passes no gradient.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                 const Tensor& key_mask = {});

// The same over keys and values that lie in several tensors [B, M_i, H, D], as if they were joined along dim
// 1; key_mask covers all of them. bf16 on CUDA reads them where they are.
Tensor attention(const Tensor& q, const Tensors& k, const Tensors& v, double scale,
                 const Tensor& key_mask = {});

// lse [B, H, N]: log2 of the sum of 2^(scale log2(e) q.k); +inf where nothing may be attended to.
KERNELS(void attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                       const Tensor& key_mask, Tensor& out, Tensor& lse);
        void attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                double scale, const Tensor& key_mask, const Tensor& out, const Tensor& lse,
                                Tensor& dq, Tensor& dk, Tensor& dv);)

namespace cuda {
// bf16 on tensor cores: D at most 128, scale > 0, at most kMaxAttentionSegments segments. Sums and lse are
// f32; the weights are rounded to bf16 before they meet the values.
inline constexpr int kMaxAttentionSegments = 6;
void attention_bf16(const Tensor& q, const Tensors& k, const Tensors& v, double scale, const Tensor& key_mask,
                    const Tensor& out, const Tensor& lse);
void attention_bf16_backward(const Tensor& dout, const Tensor& q, const Tensors& k, const Tensors& v,
                             double scale, const Tensor& key_mask, const Tensor& out, const Tensor& lse,
                             const Tensor& dq, const Tensors& dk, const Tensors& dv);
}  // namespace cuda

const OpCase& attention_case();
const OpCase& attention_segments_case();
const OpCase& attention_masked_case();

}  // namespace rivulet
