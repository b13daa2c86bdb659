// Frame-wise gated delta net: linear attention whose state forgets (decay g per frame) and overwrites
// (write strength beta per token). Inside a frame all tokens see each other. Per batch entry and head,
// with the tokens of frame f as rows of Q, Qr, K, Kr, V [S, D], B = diag(beta), state M [key, value], z:
//
//   M_f = g_f (I - P_f) M_{f-1} + A_f,      P_f = Kr' B Kr,   A_f = Kr' B V       forward scan, from `start`
//   z_f = g_f (I - Pz_f) z_{f-1} + b_f,     Pz_f = K' B K,    b_f = K' beta
//   R_{T-1} = 0,  R_{f-1} = g_f (I - P_f) R_f + A_f,  the same for z              reverse scan, own frame
//   excluded out_f = Qr (M_f + R_f) / (Q (z_f + zr_f) + eps)
//
// This is the phase form of the published recurrence (spec: SANA-Streaming, arXiv 2605.30409). Backward,
// with d = den + eps, dnum = dout / d, dden = -sum(dout * out) / d:
//   dQr = dnum (M+R)',  X = Qr' dnum,   dQ = dden (z+zr)',  y = Q' dden
//   E_{T-1} = X + dM_final,  E_f = X_f + g_{f+1} (I - P_{f+1})' E_{f+1};   L_0 = X_0,  L_f = X_f + g_f (I -
//   P_f)' L_{f-1} dA_f = E_f + L_{f-1},  dP_f = -g_f (E_f M_{f-1}' + L_{f-1} R_f'),  the same for z, then
//   through P, A, Pz, b.
// Saves P, Pz, the states of every frame and den: nothing larger than the inputs.
#pragma once

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// What one chunk of frames hands to the next. Undefined tensors stand for zeros. f32 (f64 with f64 inputs).
struct GdnState {
  Tensor kv;  // [B, H, D (value), D (key)]
  Tensor z;   // [B, H, D]
};

struct GdnResult {
  Tensor out;      // [B, T, S, H, D], dtype of q
  GdnState final;  // after the last frame of the forward scan
};

// q, k: features of the denominator (before RoPE); q_rot, k_rot: of the numerator (after RoPE); v: values;
// all [B, T, S, H, D] of any strides, one dtype. beta [B, T, S, H], decay [B, T, H], of that dtype or f32.
// Without reverse_scan a token sees its own and earlier frames only. No output gate. Gradients reach every
// input, `start` included, also from `final`.
GdnResult gdn(const Tensor& q, const Tensor& k, const Tensor& q_rot, const Tensor& k_rot, const Tensor& v,
              const Tensor& beta, const Tensor& decay, const GdnState& start, bool reverse_scan,
              float eps = 1e-8f);

struct GdnInputs {
  Tensor q, k, q_rot, k_rot, v, beta, decay;
  GdnState start;
};
// p, p_z, m, r [B, H, T, D, D]; z, zr [B, H, T, D]; den [B, T, S, H] with eps added.
struct GdnSaved {
  Tensor p, p_z, m, r, z, zr, den;
};

// All tensors in one real dtype and defined; q, k, q_rot, k_rot, v with a dense last dim, the rest dense.
KERNELS(void gdn(const GdnInputs& in, bool reverse_scan, double eps, GdnResult& result, GdnSaved& saved);
        void gdn_backward(const GdnInputs& in, bool reverse_scan, const GdnSaved& saved, const Tensor& out,
                          const Tensor& dout, const GdnState& dfinal, GdnInputs& grads);)

const OpCase& gdn_case();

}  // namespace rivulet
