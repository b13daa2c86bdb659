// Comparing results of tensors and ops with definitions written out, and with themselves.
#pragma once

#include <doctest/doctest.h>

#include <cmath>

#include "ops/case.h"
#include "tensor/autograd.h"
#include "tensor/parallel.h"

namespace rivulet {

// Largest |a - b| over the largest |b|.
inline double distance(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const auto x = a.to_vector(), y = b.to_vector();
  double error = 0, size = 1e-300;
  for (size_t i = 0; i < x.size(); ++i) {
    REQUIRE(std::isfinite(x[i]));
    error = std::max(error, std::abs(x[i] - y[i]));
    size = std::max(size, std::abs(y[i]));
  }
  return error / size;
}

// Reads a dense f64 tensor by index.
struct Reader {
  Tensor x;
  explicit Reader(const Tensor& t) : x(t.detach().to(DType::f64).contiguous()) {}
  double operator()(const Shape& i) const {
    const Shape strides = contiguous_strides(x.shape());
    int64_t at = 0;
    for (int d = 0; d < i.size(); ++d) {
      if (i[d] < 0 || i[d] >= x.dim(d)) return 0;  // zero padding
      at += i[d] * strides[d];
    }
    return x.data<double>()[at];
  }
};

inline Tensor scaled(const Tensor& x, double by) { return zeros_like(x).add_in_place(x, by); }

// The text of the Error that f throws; fails the test when it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  FAIL("no Error was thrown");
  return "";
}

// Runs f with one thread and with three; all outputs must agree bit for bit.
template <class F>
void check_same_for_any_threads(F&& f) {
  const int before = num_threads();
  set_threads(1);
  const Tensors one = f();
  set_threads(3);
  const Tensors three = f();
  set_threads(before);
  REQUIRE(one.size() == three.size());
  for (size_t i = 0; i < one.size(); ++i) CHECK(one[i].to_vector() == three[i].to_vector());
}

// Outputs of `op` and the gradients of its inputs for the seed 1.
template <class F>
Tensors with_gradients(Tensors in, F&& op) {
  for (Tensor& x : in) (x = x.detach().clone()).set_requires_grad();
  Tensors out = op(in), seeds;
  for (const Tensor& y : out) seeds.push_back(ones(y.shape(), y.dtype()));
  backward(out, seeds);
  for (const Tensor& x : in) out.push_back(x.grad());
  return out;
}

// bf16 inputs give a bf16 result close to the f32 one.
inline void check_half(const OpCase& op, const Tensors& in) {
  Tensors half;
  for (const Tensor& x : in) half.push_back(x.to(DType::bf16));
  const Tensor y = op.run(half)[0];
  CHECK(y.dtype() == DType::bf16);
  CHECK(distance(y, op.run(in)[0]) < 0.03);
}

}  // namespace rivulet
