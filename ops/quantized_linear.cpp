#include "ops/quantized_linear.h"

#include "ops/gemm.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace {

using Execution = ProductOptions::Execution;

// What multiplies row (column) i of the sum.
float scale_at(const QuantizedMatrix& q, int64_t i) {
  if (q.global) return q.global.data<float>()[0];
  if (group_of(q.format)) return 1;
  return q.scales.data<float>()[q.format == Format::fp8 ? i : 0];
}

}  // namespace

namespace cpu {

void quantized_linear(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias,
                      const Tensor& addend, const Tensor& y, const ProductOptions& options) {
  check(options.execution != Execution::native, "quantized_linear: the CPU has no units for ",
        name_of(x.format));
  Tensor a({x.rows, x.cols}), b({w.rows, w.cols}), sums({x.rows, w.rows});
  dequantize(x, false, a);
  dequantize(w, false, b);
  gemm<float>(false, true, x.rows, w.rows, x.cols, 1, a.data<float>(), x.cols, b.data<float>(), x.cols, 0,
              sums.data<float>(), w.rows);
  const Tensor more = addend ? addend.to(DType::f32).contiguous() : addend;
  const Tensor shift = bias ? bias.to(DType::f32).contiguous() : bias;
  for (int64_t i = 0; i < x.rows; ++i) {
    float* row = sums.data<float>() + i * w.rows;
    const float sx = scale_at(x, i);
    for (int64_t j = 0; j < w.rows; ++j) {
      row[j] *= sx * scale_at(w, j);
      if (shift) row[j] += shift.data<float>()[j];
      if (more) row[j] += more.data<float>()[i * w.rows + j];
    }
  }
  y.copy_from(sums);
}

}  // namespace cpu

bool runs_natively(Format format, Device device) {
  if constexpr (kHasCuda)
    if (device == Device::cuda) return cuda::has_units_for(format);
  return false;
}

QuantizedMatrix rows_of(const QuantizedMatrix& q, int64_t first, int64_t count) {
  QuantizedMatrix out = q;
  out.rows = count;
  out.codes = q.codes.slice(0, first, first + count);
  if (q.format != Format::fp8_tensor) out.scales = q.scales.slice(0, first, first + count);
  return out;
}

void quantized_linear_into(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias,
                           const Tensor& addend, const Tensor& y, const ProductOptions& options) {
  check(x.cols == w.cols && y.dims() == 2 && y.dim(0) == x.rows && y.dim(1) == w.rows,
        "quantized_linear: x [", x.rows, ", ", x.cols, "], w [", w.rows, ", ", w.cols, "], y ", y.shape());
  check(x.format == w.format || (is_fp4(x.format) && is_fp4(w.format)), "quantized_linear: x is ",
        name_of(x.format), ", w ", name_of(w.format));
  check(!bias || (bias.shape() == Shape{w.rows} && bias.dtype() == y.dtype()),
        "quantized_linear: bias has shape ", bias ? bias.shape() : Shape{}, " for ", w.rows, " columns");
  check(!addend || (addend.shape() == y.shape() && addend.dtype() == y.dtype()),
        "quantized_linear: addend has shape ", addend ? addend.shape() : Shape{}, ", y ", y.shape());
  ON_DEVICE(y, quantized_linear(x, w, bias, addend, y, options));
}

Tensor quantized_linear(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias,
                        const Tensor& addend, DType dtype, const ProductOptions& options) {
  Tensor y({x.rows, w.rows}, dtype, x.codes.device());
  quantized_linear_into(x, w, bias, addend, y, options);
  return y;
}

}  // namespace rivulet
