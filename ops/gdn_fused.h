// The gated delta net between its projections, as one op: normalises and rotates the queries and keys, runs
// the recurrence of ops/gdn.h over the frames in both directions, divides and gates. Per token, with r the
// RMS over all C channels, and per head of D = C / H channels:
//
//   q = relu(rms_norm(q~, q_norm)),   k = key_scale relu(rms_norm(k~, k_norm)),   beta = sigmoid(logits)
//   out = gdn(q, k, rope(q), rope(k), v, beta, decay, start, both directions) silu(gate)
//
// (spec: SANA-Streaming, arXiv 2605.30409.) The gradient is that of the composition. On the CPU, and on the
// GPU in f32, the op is that composition. On the GPU in bf16 with D of 32, 64 or 112 it is four kernels that
// keep no feature in memory: operands of the products are rounded to bf16, sums, states and the decay are
// f32. Their backward saves the inputs, r, and per frame and head the matrices of ops/gdn.h.
#pragma once

#include "ops/gdn.h"

namespace rivulet {

struct GdnFusedInputs {
  // Projections [B, T, S, C] of one dtype, before norm and activation; any strides. Read in place when the
  // last dim is dense, as in slices of a fused q|k|v|gate product [B, T, S, 4C].
  Tensor q, k, v, gate;
  Tensor q_norm, k_norm;  // [C]
  Tensor cos, sin;        // [T*S, D/2] of the pairs (2j, 2j + 1) of every head; not differentiated
  Tensor beta;            // logits [B, T, S, H], any strides
  Tensor decay;           // [B, T, H], in (0, 1]; best in f32
  GdnState start;         // undefined tensors stand for zeros
};

// out is [B, T, S, C] in the dtype of q; the final state is f32 (f64 with f64 inputs). Gradients reach every
// input but cos and sin, `start` included, also from `final`.
GdnResult gdn_fused(const GdnFusedInputs& in, double key_scale, double norm_eps = 1e-5, float eps = 1e-8f);

// What the bf16 kernels leave for the backward. D x D matrices of the states are [value, key].
struct GdnFusedSaved {
  Tensor r;       // [2, B*T*S] f32: 1 / RMS of q~ and of k~
  Tensor beta;    // [B*T*S, H] f32
  Tensor angles;  // [T*S, D/2] i32: cos and sin as two f16
  Tensor p;       // [B, H, T, D, D] bf16
  Tensor p_z;     // the same in f32
  Tensor m, r_m;  // [B, H, T, D, D] f32: the states M and R of every frame
  Tensor z, r_z;  // [B, H, T, D] f32: their normalisers
};

// The inputs in bf16, their last dim dense and every row 16-byte aligned; cos, sin, decay and start
// f32 and dense, q_norm and k_norm bf16 or f32 and dense (f32 in the backward); beta bf16 or f32. `start` may
// be undefined.
namespace cuda {
bool gdn_fused_takes(int64_t head_dim);
void gdn_fused(const GdnFusedInputs& in, double key_scale, double norm_eps, double eps, GdnResult& result,
               GdnFusedSaved& saved);
// grads.q, k, v, gate: bf16 [B, T, S, C]; the others f32. dfinal may hold undefined tensors.
void gdn_fused_backward(const GdnFusedInputs& in, double key_scale, double eps, const GdnFusedSaved& saved,
                        const Tensor& dout, const GdnState& dfinal, GdnFusedInputs& grads);
}  // namespace cuda

const OpCase& gdn_fused_case();

}  // namespace rivulet
