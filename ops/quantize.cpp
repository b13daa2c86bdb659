#include "ops/quantize.h"

#include <algorithm>

#include "ops/quantize_group.h"
#include "ops/rows.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace {

constexpr const char* kNames[] = {"bf16", "fp8_tensor", "fp8", "mxfp8", "nvfp4", "nvfp4_46", "nvfp4_swept"};

int64_t groups_of(Format f, int64_t cols) {
  const int64_t group = group_of(f);
  return group == 0 ? 0 : (cols + group - 1) / group;
}

float amax_of(const float* x, int64_t n) {
  float m = 0;
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; ++i) {
    const float a = finite_max(0, x[i]);
    m = m > a ? m : a;
  }
  return m;
}

float amax_of(const Tensor& x) {
  constexpr int64_t kPiece = 65536;
  const int64_t n = x.numel(), pieces = (n + kPiece - 1) / kPiece;
  std::vector<float> parts(size_t(pieces), 0.f);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      parts[size_t(p)] = amax_of(x.data<float>() + p * kPiece, std::min(kPiece, n - p * kPiece));
  });
  return amax_of(parts.data(), pieces);
}

// The scale of values [0, n) of one row, as its code (a group's) or itself (a row's or the matrix's), and the
// number that all of them are divided by.
struct Scale {
  uint8_t code = 0;
  float value = 1;
};
Scale group_scale(Format f, const float* x, int64_t n, float global) {
  const float amax = amax_of(x, n);
  if (f == Format::mxfp8) {
    const uint8_t code = e8m0_of(amax / kE4m3Max);
    return {code, e8m0_value(code)};
  }
  if (!is_fp4(f)) return {0, scale_of(amax, kE4m3Max)};
  float all[16] = {};
  std::copy_n(x, n, all);
  const uint8_t code = fp4_group_scale(f, all, amax, global);
  return {code, e4m3_value(code) * global};
}

// f(row, first, n, scale) for all groups (rows, where a scale covers one) of x [rows, K] f32.
template <class F>
void for_scaled(Format format, const Tensor& x, float whole, F&& f) {
  const int64_t rows = x.dim(0), cols = x.dim(1), group = group_of(format) ? group_of(format) : cols;
  parallel_for(
      rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(cols, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          for (int64_t c = 0; c < cols; c += group) {
            const int64_t n = std::min(group, cols - c);
            const float* at = x.data<float>() + row * cols + c;
            f(row, c, n, format == Format::fp8_tensor ? Scale{0, whole} : group_scale(format, at, n, whole));
          }
      });
}

// The f32 that the whole matrix shares: fp8_tensor's scale, fp4's global one.
float whole_scale(Format f, const Tensor& x, const Tensor& given) {
  if (given) return given.data<float>()[0];
  if (f == Format::fp8_tensor) return scale_of(amax_of(x), kE4m3Max);
  return is_fp4(f) ? scale_of(amax_of(x), fp4_range(f)) : 1.f;
}

Tensor as_matrix(const Tensor& x) {
  check(x.dims() >= 1 && is_floating(x.dtype()), "quantize: needs floating rows, got ", x.dtype(),
        " of shape ", x.shape());
  const Tensor rows = x.detach().reshape({x.numel() / std::max<int64_t>(1, x.dim(-1)), x.dim(-1)});
  const bool kept = x.device() == Device::cuda ? rows.dtype() == DType::bf16 || rows.dtype() == DType::f32
                                               : rows.dtype() == DType::f32;
  return (kept ? rows : rows.to(DType::f32)).contiguous();
}

void check_global(const Tensor& global, const Tensor& x, Format format) {
  check(!global || ((is_fp4(format) || format == Format::fp8_tensor) && global.dtype() == DType::f32 &&
                    global.numel() == 1 && global.device() == x.device()),
        "quantize: the global scale of ", name_of(format), " on ", x.device(), " cannot be ",
        global ? global.dtype() : DType::f32, " ", global ? global.shape() : Shape{});
}

}  // namespace

namespace cpu {

void quantize(const Tensor& x, QuantizedMatrix& q, bool given) {
  const Format format = q.format;
  const float whole = whole_scale(format, x, !given ? Tensor() : is_fp4(format) ? q.global : q.scales);
  if (is_fp4(format)) q.global.data<float>()[0] = whole;
  if (format == Format::fp8_tensor && !given) q.scales.data<float>()[0] = whole;
  const int64_t groups = groups_of(format, q.cols), packed = q.codes.dim(1);
  uint8_t* codes = q.codes.data<uint8_t>();
  for_scaled(format, x, whole, [&](int64_t row, int64_t c, int64_t n, Scale s) {
    const float r = 1 / s.value;
    const float* from = x.data<float>() + row * q.cols + c;
    if (format == Format::fp8) q.scales.data<float>()[row] = s.value;
    if (groups) q.scales.data<uint8_t>()[row * groups + c / group_of(format)] = s.code;
    if (!is_fp4(format)) {
      for (int64_t i = 0; i < n; ++i) codes[row * packed + c + i] = e4m3_of(from[i] * r);
      return;
    }
    for (int64_t i = 0; i < n; i += 2) {
      const uint8_t low = e2m1_of(from[i] * r), high = i + 1 < n ? e2m1_of(from[i + 1] * r) : uint8_t(0);
      codes[row * packed + (c + i) / 2] = uint8_t(low | high << 4);
    }
  });
}

void dequantize(const QuantizedMatrix& q, bool with_scales, Tensor& y) {
  const int64_t group = group_of(q.format), groups = groups_of(q.format, q.cols), packed = q.codes.dim(1);
  const uint8_t* codes = q.codes.data<uint8_t>();
  const float global = q.global && with_scales ? q.global.data<float>()[0] : 1.f;
  dispatch_floating(y.dtype(), "dequantize", [&]<class T>() {
    parallel_for(q.rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t c = 0; c < q.cols; ++c) {
          const uint8_t byte = codes[row * packed + (is_fp4(q.format) ? c / 2 : c)];
          const float value =
              is_fp4(q.format) ? e2m1_value(uint8_t(c % 2 ? byte >> 4 : byte & 15)) : e4m3_value(byte);
          float s = 1;
          if (group)
            s = group_scale_value(q.format, q.scales.data<uint8_t>()[row * groups + c / group]) * global;
          else if (with_scales)
            s = q.scales.data<float>()[q.format == Format::fp8 ? row : 0];
          y.data<T>()[row * q.cols + c] = T(value * s);
        }
    });
  });
}

void fake_quantize(const Tensor& x, Format format, const Tensor& global, Tensor& y) {
  const float whole = whole_scale(format, x, global);
  for_scaled(format, x, whole, [&](int64_t row, int64_t c, int64_t n, Scale s) {
    const float r = 1 / s.value;
    const float* from = x.data<float>() + row * x.dim(1) + c;
    float* to = y.data<float>() + row * x.dim(1) + c;
    if (is_fp4(format)) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) to[i] = e2m1_rounded(from[i] * r) * s.value;
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) to[i] = e4m3_rounded(from[i] * r) * s.value;
    }
  });
}

void swizzle_scales(const Tensor& scales, Tensor& out) {
  const int64_t rows = scales.dim(0), columns = scales.dim(1);
  out.fill(0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      out.data<uint8_t>()[swizzled_offset(r, c, columns)] = scales.data<uint8_t>()[r * columns + c];
}

}  // namespace cpu

const char* name_of(Format f) { return kNames[int(f)]; }

Format format_named(const std::string& name) {
  std::string known;
  for (int i = 0; i < int(std::size(kNames)); ++i) {
    if (name == kNames[i]) return Format(i);
    known += (i ? ", " : "") + std::string(kNames[i]);
  }
  fail("number format \"", name, "\" is unknown; there are ", known);
}

int64_t QuantizedMatrix::bytes() const {
  int64_t total = 0;
  for (const Tensor& t : {codes, scales, global})
    if (t) total += t.bytes();
  return total;
}

QuantizedMatrix quantize(const Tensor& x_any, Format format, const Tensor& global) {
  check(format != Format::bf16, "quantize: bf16 is not a matrix of codes");
  check_global(global, x_any, format);
  const Tensor x = as_matrix(x_any);
  QuantizedMatrix q{format, x.dim(0), x.dim(1), {}, {}, {}};
  const Device device = x.device();
  q.codes = Tensor({q.rows, is_fp4(format) ? (q.cols + 1) / 2 : q.cols}, DType::u8, device);
  if (group_of(format))
    q.scales = Tensor({q.rows, groups_of(format, q.cols)}, DType::u8, device);
  else
    q.scales = Tensor({format == Format::fp8 ? q.rows : 1}, DType::f32, device);
  if (is_fp4(format)) q.global = global ? global.detach().clone() : Tensor({1}, DType::f32, device);
  if (format == Format::fp8_tensor && global) q.scales = global.detach();
  ON_DEVICE(x, quantize(x, q, bool(global)));
  return q;
}

void quantize_into(const Tensor& x_any, QuantizedMatrix rows) {
  const Tensor x = as_matrix(x_any);
  const bool whole = rows.format == Format::fp8_tensor;
  check((whole || rows.format == Format::fp8) && rows.rows == x.dim(0) && rows.cols == x.dim(1),
        "quantize: x has shape ", x.shape(), ", the rows are [", rows.rows, ", ", rows.cols, "] of ",
        name_of(rows.format));
  ON_DEVICE(x, quantize(x, rows, whole));
}

Tensor dequantize(const QuantizedMatrix& q, DType dtype) {
  Tensor y({q.rows, q.cols}, dtype, q.codes.device());
  ON_DEVICE(y, dequantize(q, true, y));
  return y;
}

Tensor unscaled(const QuantizedMatrix& q) {
  Tensor y({q.rows, q.cols}, DType::bf16, q.codes.device());
  ON_DEVICE(y, dequantize(q, false, y));
  return y;
}

Tensor fake_quantize(const Tensor& x, Format format, const Tensor& global) {
  if (format == Format::bf16) return x;
  check_global(global, x, format);
  const Tensor rows = as_matrix(x);
  Tensor y = empty_like(rows);
  ON_DEVICE(y, fake_quantize(rows, format, global, y));
  return record("fake_quantize", y.to(x.dtype()).reshape(x.shape()), {x},
                [](const Tensor& dy) -> Tensors { return {dy}; });
}

Tensor swizzle_scales(const Tensor& scales) {
  check(scales.dims() == 2 && scales.dtype() == DType::u8, "swizzle_scales: needs u8 [rows, columns], got ",
        scales.dtype(), " ", scales.shape());
  const Tensor dense = scales.contiguous();
  Tensor out({swizzled_bytes(scales.dim(0), scales.dim(1))}, DType::u8, scales.device());
  ON_DEVICE(out, swizzle_scales(dense, out));
  return out;
}

}  // namespace rivulet
