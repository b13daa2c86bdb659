// What stands between two products of a transformer, with the rounding of its result to E4M3 rows for the
// second (ops/quantize.h), in one pass over memory. Inference only. With a given scale, to one of the whole
// matrix instead (fp8_tensor).
//
//   h' = h + gate * branch,   u = layer_norm(h') (1 + scale) + shift,   q = quantize(u, Format::fp8)
//
// Without a branch h' is h; without shift and scale u is h'. u is rounded to the dtype of h before q is made
// of it, so the bits are those of the ops one after the other.
#pragma once

#include "ops/quantize.h"

namespace rivulet {

struct NormQuantized {
  Tensor h, u;  // [..., C]; u is undefined unless asked for or equal to h
  QuantizedMatrix q;
};
// h, branch [..., C]; gate, shift and scale of C elements in all, or broadcasting as in ops/modulate.h.
NormQuantized norm_quantize(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                            const Tensor& scale, double eps, bool keep_u, const Tensor& given = {});

namespace cuda {
// x [rows, K] dense bf16; codes u8 [rows, K] and scales f32 [rows] dense. False when it cannot: nothing was
// done.
bool quantize_rows(const Tensor& x, const Tensor& codes, const Tensor& scales);
// The same with one scale for all, f32 [1], that is known.
bool quantize_scaled(const Tensor& x, const Tensor& codes, const Tensor& scale);
// With `given`, scales is that one scale. Undefined: gate, branch and sum together; shift and scale together;
// u. The same.
bool norm_quantize(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                   const Tensor& scale, double eps, const Tensor& sum, const Tensor& u, const Tensor& codes,
                   const Tensor& scales, bool given);
}  // namespace cuda

}  // namespace rivulet
