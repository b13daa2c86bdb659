// Products of quantised matrices (inference only):
//
//   Y[i, j] = sx_i sw_j (sum over p of x_ip w_jp) + bias_j + E[i, j],       x, w: codes times group scales
//
// The sum is in f32; sx and sw are the f32 scales (of a row, of the whole matrix, or both factors of an fp4
// one). Where a GPU multiplies the format it does so; elsewhere the codes times group scales, which bf16
// holds exactly, are multiplied as bf16: apart from the order of an f32 sum, the same numbers (precision.md,
// fact 3).
//
//   fp8, fp8_tensor   from Hopper on (Ada: fp8_tensor); rows scaled by the library on Hopper alone
//   mxfp8, nvfp4      Blackwell
#pragma once

#include "ops/quantize.h"

namespace rivulet {

struct ProductOptions {
  enum class Execution : uint8_t { automatic, native, emulated };
  Execution execution = Execution::automatic;
  // Hopper's E4M3 products: sums stay in the tensor core, at 14 bits, instead of being added up in f32 for
  // each 128 of K.
  bool fast_sums = false;
};

// x [M, K], w [N, K], both of one family (fp4 with fp4, otherwise one format). bias [N] and addend [M, N] of
// the result's dtype, or undefined. Execution::native throws where the GPU lacks the format.
Tensor quantized_linear(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias = {},
                        const Tensor& addend = {}, DType dtype = DType::f32,
                        const ProductOptions& options = {});
// Into y [M, N]: dense rows at any distance. addend may be y itself.
void quantized_linear_into(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias,
                           const Tensor& addend, const Tensor& y, const ProductOptions& options = {});

// Rows [first, first + count).
QuantizedMatrix rows_of(const QuantizedMatrix& q, int64_t first, int64_t count);

// Whether a product of this format on `device` runs on units made for it.
bool runs_natively(Format format, Device device);

KERNELS(void quantized_linear(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias,
                              const Tensor& addend, const Tensor& y, const ProductOptions& options);)
namespace cuda {
bool has_units_for(Format format);
}

}  // namespace rivulet
