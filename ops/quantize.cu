#include "ops/norm_quantize.h"
#include "ops/quantize_group.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

template <class T>
__device__ float wide(T x) {
  return convert<float>(x);
}

// amax of everything, as the bits of a float that is not negative, in *to (which starts at 0): a maximum is
// the same in any order.
template <class T>
__global__ void amax_kernel(const T* x, int64_t n, unsigned* to) {
  float m = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    m = finite_max(m, wide(x[i]));
  m = block_max<kThreads / 32>(m);
  if (threadIdx.x == 0) atomicMax(to, bits_as<unsigned>(m));
}

__global__ void to_scale(float* x, float largest) { *x = scale_of(*x, largest); }

// What the whole matrix shares, in a tensor of one f32.
template <class T>
void whole_scale(const Tensor& x, Format format, const Tensor& out) {
  cuda_check(cudaMemsetAsync(out.raw(), 0, sizeof(float), stream()));
  const unsigned blocks = unsigned(std::clamp<int64_t>(x.numel() / (8 * kThreads), 1, 1024));
  launch({blocks, kThreads}, amax_kernel<T>, pointer<T>(x), x.numel(), static_cast<unsigned*>(out.raw()));
  launch({1, 1}, to_scale, pointer<float>(out), is_fp4(format) ? fp4_range(format) : kE4m3Max);
}

// One block a row of E4M3 with a scale for the row, or with the scale *whole. Codes or rounded values.
template <class T, bool fake>
__global__ void rows_kernel(const T* x, int64_t cols, const float* whole, float* scales, void* out) {
  const T* from = x + int64_t(blockIdx.x) * cols;
  float s;
  if (whole) {
    s = *whole;
  } else {
    float m = 0;
    for (int64_t c = threadIdx.x; c < cols; c += kThreads) m = finite_max(m, wide(from[c]));
    s = scale_of(block_max<kThreads / 32>(m), kE4m3Max);
    if (threadIdx.x == 0 && scales) scales[blockIdx.x] = s;
  }
  const float r = 1 / s;
  for (int64_t c = threadIdx.x; c < cols; c += kThreads) {
    const int64_t at = int64_t(blockIdx.x) * cols + c;
    const uint8_t code = e4m3_of(wide(from[c]) * r);
    if constexpr (fake)
      static_cast<T*>(out)[at] = convert<T>(e4m3_value(code) * s);
    else
      static_cast<uint8_t*>(out)[at] = code;
  }
}

template <int group>
__device__ uint8_t code_of(Format format, const float (&v)[group], float amax, float whole) {
  if constexpr (group == 32)
    return e8m0_of(amax / kE4m3Max);
  else
    return fp4_group_scale(format, v, amax, whole);
}

// One thread a group.
template <class T, int group, bool fake>
__global__ void groups_kernel(Format format, const T* x, int64_t rows, int64_t cols, const float* global,
                              uint8_t* scales, void* out) {
  const int64_t per_row = (cols + group - 1) / group, index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= rows * per_row) return;
  const int64_t row = index / per_row, first = index % per_row * group;
  const int n = int(min(int64_t(group), cols - first));
  float v[group], amax = 0;
#pragma unroll
  for (int i = 0; i < group; ++i) {
    v[i] = i < n ? wide(x[row * cols + first + i]) : 0;
    amax = finite_max(amax, v[i]);
  }
  const float whole = global ? *global : 1;
  const uint8_t code = code_of<group>(format, v, amax, whole);
  const float s = group == 32 ? e8m0_value(code) : e4m3_value(code) * whole, r = 1 / s;
  if (scales) scales[index] = code;
#pragma unroll
  for (int i = 0; i < group; ++i) {
    if (i >= n) break;
    if constexpr (fake) {
      const float y = group == 32 ? e4m3_rounded(v[i] * r) : e2m1_rounded(v[i] * r);
      static_cast<T*>(out)[row * cols + first + i] = convert<T>(y * s);
    } else if constexpr (group == 32) {
      static_cast<uint8_t*>(out)[row * cols + first + i] = e4m3_of(v[i] * r);
    } else if (i % 2 == 0) {
      const uint32_t high = i + 1 < n ? e2m1_of(v[i + 1] * r) : 0;
      static_cast<uint8_t*>(out)[row * ((cols + 1) / 2) + (first + i) / 2] =
          uint8_t(e2m1_of(v[i] * r) | high << 4);
    }
  }
}

template <class T, bool fake>
void run(Format format, const Tensor& x, const float* whole, void* scales, void* out) {
  const int64_t rows = x.dim(0), cols = x.dim(1), group = group_of(format);
  if (x.numel() == 0) return;
  if (group == 0) {
    launch({unsigned(rows), kThreads}, rows_kernel<T, fake>, pointer<T>(x), cols, whole,
           static_cast<float*>(scales), out);
    return;
  }
  const int64_t threads = rows * ((cols + group - 1) / group);
  const auto kernel = group == 16 ? groups_kernel<T, 16, fake> : groups_kernel<T, 32, fake>;
  launch({blocks_for(threads, 128), 128}, kernel, format, pointer<T>(x), rows, cols, whole,
         static_cast<uint8_t*>(scales), out);
}

template <class F>
void dispatch(const Tensor& x, F&& f) {
  if (x.dtype() == DType::bf16) return f.template operator()<__nv_bfloat16>();
  check(x.dtype() == DType::f32, "quantize: the GPU takes f32 and bf16, got ", x.dtype());
  f.template operator()<float>();
}

// Four neighbours of a row a thread.
template <class T>
__global__ void dequantize_kernel(Format format, const uint8_t* codes, const void* scales,
                                  const float* global, int64_t rows, int64_t cols, T* y) {
  const int64_t per_row = (cols + 3) / 4, index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= rows * per_row) return;
  const int64_t row = index / per_row, first = index % per_row * 4;
  const int group = is_fp4(format) ? 16 : 32;
  float s = 1;
  if (is_fp4(format) || format == Format::mxfp8)
    s = group_scale_value(
        format, static_cast<const uint8_t*>(scales)[row * ((cols + group - 1) / group) + first / group]);
  else if (scales)
    s = static_cast<const float*>(scales)[format == Format::fp8 ? row : 0];
  if (global) s *= *global;
  for (int64_t c = first; c < min(first + 4, cols); ++c) {
    float v;
    if (is_fp4(format)) {
      const uint8_t byte = codes[row * ((cols + 1) / 2) + c / 2];
      v = e2m1_value(uint8_t(c % 2 ? byte >> 4 : byte & 15));
    } else {
      v = e4m3_value(codes[row * cols + c]);
    }
    y[row * cols + c] = convert<T>(v * s);
  }
}

__global__ void swizzle_kernel(const uint8_t* scales, int64_t rows, int64_t columns, uint8_t* out) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= rows * columns) return;
  out[swizzled_offset(index / columns, index % columns, columns)] = scales[index];
}

}  // namespace

void quantize(const Tensor& x, QuantizedMatrix& q, bool given) {
  if (q.format == Format::fp8 && quantize_rows(x, q.codes, q.scales)) return;
  if (q.format == Format::fp8_tensor && given && quantize_scaled(x, q.codes, q.scales)) return;
  dispatch(x, [&]<class T>() {
    const bool shared = is_fp4(q.format) || q.format == Format::fp8_tensor;
    const Tensor& whole = is_fp4(q.format) ? q.global : q.scales;
    if (shared && !given) whole_scale<T>(x, q.format, whole);
    run<T, false>(q.format, x, shared ? pointer<float>(whole) : nullptr,
                  q.format == Format::fp8_tensor ? nullptr : q.scales.raw(), q.codes.raw());
  });
}

void fake_quantize(const Tensor& x, Format format, const Tensor& global, Tensor& y) {
  dispatch(x, [&]<class T>() {
    Tensor whole = global;
    if (!whole && (is_fp4(format) || format == Format::fp8_tensor)) {
      whole = Tensor({1}, DType::f32, Device::cuda);
      whole_scale<T>(x, format, whole);
    }
    run<T, true>(format, x, pointer<float>(whole), nullptr, y.raw());
  });
}

void dequantize(const QuantizedMatrix& q, bool with_scales, Tensor& y) {
  if (y.numel() == 0) return;
  const bool groups = group_of(q.format) > 0;
  const void* scales = groups || with_scales ? q.scales.raw() : nullptr;
  dispatch_float(y.dtype(), "dequantize", [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>)
      launch({blocks_for(q.rows * ((q.cols + 3) / 4), kThreads), kThreads}, dequantize_kernel<T>, q.format,
             pointer<uint8_t>(q.codes), scales, with_scales ? pointer<float>(q.global) : nullptr, q.rows,
             q.cols, pointer<T>(y));
  });
}

void swizzle_scales(const Tensor& scales, Tensor& out) {
  cuda_check(cudaMemsetAsync(out.raw(), 0, size_t(out.numel()), stream()));
  launch({blocks_for(scales.numel(), kThreads), kThreads}, swizzle_kernel, pointer<uint8_t>(scales),
         scales.dim(0), scales.dim(1), pointer<uint8_t>(out));
}

}  // namespace rivulet::cuda
