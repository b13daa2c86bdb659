// Arithmetic one element at a time, with NumPy broadcasting. Every function takes f64, f32, bf16 or f16
// (two operands of one dtype, but halves mix with f32) and strided views; the result is dense and has the
// dtype of the first operand. On the CPU, f32 exp, log and tanh are within 2 ulp, sigmoid, silu and softplus
// within 3; pow, sin and cos are the C library's. Saved for the gradient: the operands, or the result where
// the slope is a function of it (exp, sqrt, rsqrt, sigmoid, tanh); add and sub save nothing.
#pragma once

#include "ops/case.h"
#include "tensor/tensor.h"

namespace rivulet {

Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
// Where the operands are equal, each gets half of the gradient.
Tensor maximum(const Tensor& a, const Tensor& b);
Tensor minimum(const Tensor& a, const Tensor& b);

Tensor affine(const Tensor& x, double scale, double shift);  // scale * x + shift
Tensor neg(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor rsqrt(const Tensor& x);  // 1 / sqrt(x)
Tensor square(const Tensor& x);
Tensor abs(const Tensor& x);  // the gradient at 0 is 0
Tensor pow_scalar(const Tensor& x, double exponent);
Tensor clamp(const Tensor& x, double low, double high);  // the gradient is 1 from low to high, ends included
Tensor sigmoid(const Tensor& x);
Tensor silu(const Tensor& x);  // x * sigmoid(x)
Tensor relu(const Tensor& x);  // the gradient at 0 is 0
// x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))): Hendrycks & Gimpel 2016, eq. 2
Tensor gelu_tanh(const Tensor& x);
Tensor softplus(const Tensor& x);  // log(1 + e^x), without overflow
Tensor tanh(const Tensor& x);
Tensor sin(const Tensor& x);
Tensor cos(const Tensor& x);

// mask (u8; 0 is false) ? a : b, all three broadcast together.
Tensor where(const Tensor& mask, const Tensor& a, const Tensor& b);

inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator-(const Tensor& x) { return neg(x); }
inline Tensor operator+(const Tensor& x, double s) { return affine(x, 1, s); }
inline Tensor operator+(double s, const Tensor& x) { return affine(x, 1, s); }
inline Tensor operator-(const Tensor& x, double s) { return affine(x, 1, -s); }
inline Tensor operator-(double s, const Tensor& x) { return affine(x, -1, s); }
inline Tensor operator*(const Tensor& x, double s) { return affine(x, s, 0); }
inline Tensor operator*(double s, const Tensor& x) { return affine(x, s, 0); }
inline Tensor operator/(const Tensor& x, double s) { return affine(x, 1 / s, 0); }
Tensor operator/(double s, const Tensor& x);

enum class UnaryOp : uint8_t {
  affine,
  reciprocal,
  exp,
  log,
  sqrt,
  rsqrt,
  square,
  abs,
  pow,
  clamp,
  sigmoid,
  silu,
  relu,
  gelu_tanh,
  softplus,
  tanh,
  sin,
  cos
};
// above(a, b) is 1 where a > b, 1/2 where they are equal, else 0: the share of maximum's gradient.
enum class BinaryOp : uint8_t { add, sub, mul, div, maximum, minimum, above };

// y = op(x) and dx = g * op'(saved), where saved is x or y by saves_result(op, dtype). p and q are the op's
// numbers: affine scale, shift; reciprocal p / x; pow exponent; clamp low, high. A half is too coarse to be
// differentiated from (1 - y of a sigmoid near 1): there the result is computed again, in f32.
constexpr bool slope_of_result(UnaryOp op) {
  return op == UnaryOp::exp || op == UnaryOp::sqrt || op == UnaryOp::rsqrt || op == UnaryOp::sigmoid ||
         op == UnaryOp::tanh;
}
constexpr bool saves_result(UnaryOp op, DType t) { return slope_of_result(op) && !is_half(t); }
KERNELS(void unary(UnaryOp op, const Tensor& x, double p, double q, Tensor& y);
        void unary_backward(UnaryOp op, const Tensor& g, const Tensor& saved, double p, double q, Tensor& dx);
        void binary(BinaryOp op, const Tensor& a, const Tensor& b, Tensor& y);
        // db = -g a / b^2, all in one shape.
        void div_backward(const Tensor& g, const Tensor& a, const Tensor& b, Tensor& db);
        void where(const Tensor& mask, const Tensor& a, const Tensor& b, Tensor& y);)

const OpCase& add_case();
const OpCase& sub_case();
const OpCase& mul_case();
const OpCase& div_case();
const OpCase& maximum_case();
const OpCase& minimum_case();
const OpCase& affine_case();
const OpCase& reciprocal_case();
const OpCase& neg_case();
const OpCase& exp_case();
const OpCase& log_case();
const OpCase& sqrt_case();
const OpCase& rsqrt_case();
const OpCase& square_case();
const OpCase& abs_case();
const OpCase& pow_scalar_case();
const OpCase& clamp_case();
const OpCase& sigmoid_case();
const OpCase& silu_case();
const OpCase& relu_case();
const OpCase& gelu_tanh_case();
const OpCase& softplus_case();
const OpCase& tanh_case();
const OpCase& sin_case();
const OpCase& cos_case();
const OpCase& where_case();

}  // namespace rivulet
