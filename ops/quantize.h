// Matrices in few bits, for inference, and the same rounding in the midst of training.
//
// A matrix [rows, K] (rows: tokens of an activation, output channels of a weight) is kept as codes and
// scales; groups run along K, the last one of a row may be shorter.
//
//   format       codes  scales                                                       bits a value
//   bf16         -      none: the matrix as it is                                    16
//   fp8_tensor   E4M3   one f32, amax / 448                                          8
//   fp8          E4M3   one f32 a row, amax / 448                                    8 + 32/K
//   mxfp8        E4M3   UE8M0 for 32 values, amax / 448 rounded up                   8.25
//   nvfp4        E2M1   E4M3 for 16 values, and one f32, amax / (448 * 6)            4.5
//   nvfp4_46     E2M1   as nvfp4, the f32 amax / (256 * 6): of each group the better of the two scales that
//                       take its amax to 6 and to 4
//   nvfp4_swept  E2M1   as nvfp4_46, of each group the E4M3 scale of least squared error; for weights
//
// In f32, each operation rounded by itself (so the bits are the same everywhere):
//   fp8:    s = max(amax / 448, 2^-100);  code = E4M3(x * (1 / s));                      value = code * s
//   nvfp4:  g = max(amax / 2688, 2^-100);  b = E4M3(clamp((amax_group / 6) / g, 2^-9, 448));
//           code = E2M1(x * (1 / (b * g)));                                               value = code * b *
//           g
// amax skips what is not finite. Infinities saturate; NaN stays NaN in E4M3 and becomes +6 in E2M1.
#pragma once

#include <string>

#include "ops/case.h"
#include "ops/formats.h"
#include "tensor/tensor.h"

namespace rivulet {

enum class Format : uint8_t { bf16, fp8_tensor, fp8, mxfp8, nvfp4, nvfp4_46, nvfp4_swept };
inline constexpr int kFormats = 7;
const char* name_of(Format format);
Format format_named(const std::string& name);  // throws, and lists the names
RIVULET_BOTH constexpr bool is_fp4(Format f) { return f >= Format::nvfp4; }
// Values that share a scale; 0 where a row or the whole matrix does.
RIVULET_BOTH constexpr int64_t group_of(Format f) { return is_fp4(f) ? 16 : f == Format::mxfp8 ? 32 : 0; }

struct QuantizedMatrix {
  Format format = Format::bf16;
  int64_t rows = 0, cols = 0;
  Tensor codes;   // u8 [rows, K]; fp4: u8 [rows, ceil(K / 2)], the element of lower index in the low nibble
  Tensor scales;  // fp8_tensor f32 [1], fp8 f32 [rows], otherwise u8 [rows, ceil(K / group)]
  Tensor global;  // fp4: f32 [1]

  int64_t bytes() const;
};

// x [..., K] of f32 or bf16 as [rows, K]. `global` (f32 [1]) replaces amax / 2688 where it is known
// beforehand: larger values then saturate.
QuantizedMatrix quantize(const Tensor& x, Format format, const Tensor& global = {});
// The same into rows that exist: of Format::fp8, or of fp8_tensor with a scale that is there.
void quantize_into(const Tensor& x, QuantizedMatrix rows);
// Rounded once, from f32, to `dtype`.
Tensor dequantize(const QuantizedMatrix& q, DType dtype = DType::f32);
// codes times group scales, without the f32 scales: exact in bf16 (1016 products; precision.md fact 3). What
// a GPU without the format multiplies.
Tensor unscaled(const QuantizedMatrix& q);

// dequantize(quantize(x)) in the dtype of x; the gradient passes straight through. Format::bf16 gives x.
Tensor fake_quantize(const Tensor& x, Format format, const Tensor& global = {});

// Scales [rows, C] in the order in which cuBLASLt's block-scaled modes want them ("128x4"), padded with
// zeros to whole tiles: scale (r, c) goes to byte swizzled_offset(r, c, C).
RIVULET_BOTH constexpr int64_t swizzled_offset(int64_t r, int64_t c, int64_t columns) {
  return ((r / 128) * ((columns + 3) / 4) + c / 4) * 512 + (r % 32) * 16 + ((r % 128) / 32) * 4 + c % 4;
}
constexpr int64_t swizzled_bytes(int64_t rows, int64_t columns) {
  return (rows + 127) / 128 * 128 * ((columns + 3) / 4 * 4);
}
Tensor swizzle_scales(const Tensor& scales);

// x [rows, K] dense, f32 (or bf16 on a GPU); the results dense, of the shapes above. q.global is written
// unless it is `given`.
KERNELS(void quantize(const Tensor& x, QuantizedMatrix& q, bool given);
        void dequantize(const QuantizedMatrix& q, bool with_scales, Tensor& y);
        void fake_quantize(const Tensor& x, Format format, const Tensor& global, Tensor& y);
        void swizzle_scales(const Tensor& scales, Tensor& out);)

}  // namespace rivulet
