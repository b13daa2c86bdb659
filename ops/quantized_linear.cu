#include "ops/quantized_linear.h"

#include "ops/gemm.cuh"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

using Execution = ProductOptions::Execution;

// Major and minor of the GPU in use, as 90 or 120.
int compute_capability() {
  static const int value = [] {
    int device = 0, major = 0, minor = 0;
    cuda_check(cudaGetDevice(&device));
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return 10 * major + minor;
  }();
  return value;
}

__global__ void multiply(const float* a, const float* b, float* to) { *to = *a * *b; }

// Scales of rows (or one) of a matrix in f32, null for none.
struct RowScale {
  const float* value;
  int64_t step;
};
RowScale row_scale(const QuantizedMatrix& q) {
  if (q.global) return {pointer<float>(q.global), 0};
  if (group_of(q.format)) return {nullptr, 0};
  return {pointer<float>(q.scales), q.format == Format::fp8 ? 1 : 0};
}

template <class T>
__global__ void finish(const float* sums, RowScale x, RowScale w, const T* bias, const T* addend,
                       int64_t addend_step, int64_t columns, T* y, int64_t y_step) {
  const int64_t j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, i = blockIdx.y;
  if (j >= columns) return;
  float v = sums[i * columns + j];
  if (x.value) v *= x.value[i * x.step] * (w.value ? w.value[j * w.step] : 1.f);
  if (bias) v += convert<float>(bias[j]);
  if (addend) v += convert<float>(addend[i * addend_step + j]);
  y[i * y_step + j] = convert<T>(v);
}

int64_t step_of(const Tensor& y) { return y.dim(0) == 1 ? y.dim(1) : y.strides()[0]; }

Gemm product_of(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& y) {
  Gemm g;
  g.trans_b = true;
  g.m = x.rows;
  g.n = w.rows;
  g.k = g.lda = g.ldb = x.cols;
  g.c = y.raw();
  g.ldc = step_of(y);
  g.out = y.dtype();
  return g;
}

// The library's own product of the format; false where it has none.
bool natively(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias, const Tensor& addend,
              const Tensor& y, const ProductOptions& options) {
  if (!has_units_for(x.format) || x.cols % (is_fp4(x.format) ? 32 : 16) != 0) return false;
  if (addend && addend.raw() != y.raw() && step_of(addend) != step_of(y)) return false;
  Gemm g = product_of(x, w, y);
  g.in = is_fp4(x.format) ? DType::f4_e2m1x2 : DType::f8_e4m3;
  g.a = x.codes.raw();
  g.b = w.codes.raw();
  g.bias = bias ? bias.raw() : nullptr;
  g.beta = addend ? 1 : 0;
  g.addend = addend ? addend.raw() : nullptr;
  g.fast_sums = options.fast_sums;
  Tensor swizzled_x, swizzled_w, alpha;
  if (group_of(x.format)) {
    swizzled_x = rivulet::swizzle_scales(x.scales);
    swizzled_w = rivulet::swizzle_scales(w.scales);
    g.scaling = is_fp4(x.format) ? Scaling::groups16 : Scaling::groups32;
    g.scale_a = swizzled_x.raw();
    g.scale_b = swizzled_w.raw();
  } else {
    g.scaling = x.format == Format::fp8 ? Scaling::rows : Scaling::tensor;
    g.scale_a = x.scales.raw();
    g.scale_b = w.scales.raw();
  }
  if (is_fp4(x.format)) {
    alpha = Tensor({1}, DType::f32, Device::cuda);
    launch({1, 1}, multiply, pointer<float>(x.global), pointer<float>(w.global), pointer<float>(alpha));
    g.alpha_on_device = pointer<float>(alpha);
  }
  return try_gemm(g);
}

}  // namespace

bool has_units_for(Format format) {
  const int cc = compute_capability();
  if (format == Format::fp8) return cc == 90;
  if (format == Format::fp8_tensor) return cc >= 89;
  return format != Format::bf16 && cc >= 100;
}

void quantized_linear(const QuantizedMatrix& x, const QuantizedMatrix& w, const Tensor& bias,
                      const Tensor& addend, const Tensor& y, const ProductOptions& options) {
  if (y.numel() == 0) return;
  if (options.execution != Execution::emulated && natively(x, w, bias, addend, y, options)) return;
  check(options.execution != Execution::native, "quantized_linear: this GPU (compute capability ",
        compute_capability() / 10, ".", compute_capability() % 10, ") has no units for ", name_of(x.format),
        " [", x.rows, ", ", x.cols, "] x [", w.rows, ", ", w.cols, "]; ask for the emulation");
  const Tensor a = unscaled(x), b = unscaled(w), sums({x.rows, w.rows}, DType::f32, Device::cuda);
  Gemm g = product_of(x, w, sums);
  g.in = DType::bf16;
  g.a = a.raw();
  g.b = b.raw();
  gemm(g);
  check(x.rows <= 65535, "quantized_linear: ", x.rows, " rows");
  dispatch_float(y.dtype(), "quantized_linear", [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>)
      launch({dim3(blocks_for(w.rows, kThreads), unsigned(x.rows)), kThreads}, finish<T>,
             pointer<float>(sums), row_scale(x), row_scale(w), pointer<T>(bias), pointer<T>(addend),
             addend ? step_of(addend) : 0, w.rows, pointer<T>(y), step_of(y));
  });
}

}  // namespace rivulet::cuda
