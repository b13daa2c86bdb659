// GPU bodies of the elementwise ops.
#include "ops/elementwise.h"

#include "ops/elementwise.cuh"

namespace rivulet::cuda {
namespace {

// --- Functions of one variable ---------------------------------------------------------------------------

template <class W>
__device__ W sigmoid_of(W x) {
  return W(1) / (W(1) + ::exp(-x));
}
// 1 + tanh(u) = 2 sigmoid(2u); the constants are 2 sqrt(2/pi) and 0.044715 of the formula.
template <class W>
constexpr W kGeluA = W(1.5957691216057308);
template <class W>
constexpr W kGeluB = W(0.044715);

template <UnaryOp op, class W>
__device__ W value_of(W x, W p, W q) {
  if constexpr (op == UnaryOp::affine) return p * x + q;
  if constexpr (op == UnaryOp::reciprocal) return p / x;
  if constexpr (op == UnaryOp::exp) return ::exp(x);
  if constexpr (op == UnaryOp::log) return ::log(x);
  if constexpr (op == UnaryOp::sqrt) return ::sqrt(x);
  if constexpr (op == UnaryOp::rsqrt) return W(1) / ::sqrt(x);
  if constexpr (op == UnaryOp::square) return x * x;
  if constexpr (op == UnaryOp::abs) return ::fabs(x);
  if constexpr (op == UnaryOp::pow) return ::pow(x, p);
  if constexpr (op == UnaryOp::clamp) {
    const W low = x < p ? p : x;
    return low > q ? q : low;
  }
  if constexpr (op == UnaryOp::sigmoid) return sigmoid_of(x);
  if constexpr (op == UnaryOp::silu) return x * sigmoid_of(x);
  if constexpr (op == UnaryOp::relu) return x < W(0) ? W(0) : x;
  if constexpr (op == UnaryOp::gelu_tanh) return x * sigmoid_of(kGeluA<W> * (x + kGeluB<W> * x * x * x));
  if constexpr (op == UnaryOp::softplus) return (x < W(0) ? W(0) : x) + ::log1p(::exp(-::fabs(x)));
  if constexpr (op == UnaryOp::tanh) return ::tanh(x);
  if constexpr (op == UnaryOp::sin) return ::sin(x);
  if constexpr (op == UnaryOp::cos) return ::cos(x);
}

// The derivative; s is x, or y by slope_of_result().
template <UnaryOp op, class W>
__device__ W slope_of(W s, W p, W q) {
  if constexpr (op == UnaryOp::affine) return p;
  if constexpr (op == UnaryOp::reciprocal) return -p / (s * s);
  if constexpr (op == UnaryOp::exp) return s;
  if constexpr (op == UnaryOp::log) return W(1) / s;
  if constexpr (op == UnaryOp::sqrt) return W(0.5) / s;
  if constexpr (op == UnaryOp::rsqrt) return W(-0.5) * s * s * s;
  if constexpr (op == UnaryOp::square) return W(2) * s;
  if constexpr (op == UnaryOp::abs) return W(s > W(0)) - W(s < W(0));
  if constexpr (op == UnaryOp::pow) return p * ::pow(s, p - W(1));
  if constexpr (op == UnaryOp::clamp) return s < p || s > q ? W(0) : W(1);
  if constexpr (op == UnaryOp::sigmoid) return s * (W(1) - s);
  if constexpr (op == UnaryOp::silu) {
    const W y = sigmoid_of(s);
    return y + s * y * (W(1) - y);
  }
  if constexpr (op == UnaryOp::relu) return s > W(0) ? W(1) : W(0);
  if constexpr (op == UnaryOp::gelu_tanh) {
    const W y = sigmoid_of(kGeluA<W> * (s + kGeluB<W> * s * s * s));
    return y + s * y * (W(1) - y) * kGeluA<W> * (W(1) + W(3) * kGeluB<W> * s * s);
  }
  if constexpr (op == UnaryOp::softplus) return sigmoid_of(s);
  if constexpr (op == UnaryOp::tanh) return W(1) - s * s;
  if constexpr (op == UnaryOp::sin) return ::cos(s);
  if constexpr (op == UnaryOp::cos) return -::sin(s);
}

// f.template operator()<op>(): all functions share one kernel, which branches once per pack.
template <class F>
__device__ void select(UnaryOp op, F&& f) {
#define RIVULET_ONE(name)                   \
  case UnaryOp::name:                       \
    f.template operator()<UnaryOp::name>(); \
    break;
  switch (op) {
    RIVULET_ONE(affine)
    RIVULET_ONE(reciprocal)
    RIVULET_ONE(exp)
    RIVULET_ONE(log)
    RIVULET_ONE(sqrt)
    RIVULET_ONE(rsqrt)
    RIVULET_ONE(square)
    RIVULET_ONE(abs)
    RIVULET_ONE(pow)
    RIVULET_ONE(clamp)
    RIVULET_ONE(sigmoid)
    RIVULET_ONE(silu)
    RIVULET_ONE(relu)
    RIVULET_ONE(gelu_tanh)
    RIVULET_ONE(softplus)
    RIVULET_ONE(tanh)
    RIVULET_ONE(sin)
    RIVULET_ONE(cos)
  }
#undef RIVULET_ONE
}

template <class T>
struct Value {
  UnaryOp which;
  Wide<T> p, q;
  template <int P>
  __device__ Pack<T, P> operator()(const Pack<T, P>& x) const {
    Pack<T, P> y;
    select(which, [&]<UnaryOp op>() {
#pragma unroll
      for (int i = 0; i < P; ++i) y.v[i] = convert<T>(value_of<op>(Wide<T>(x.v[i]), p, q));
    });
    return y;
  }
};

template <UnaryOp op>
constexpr bool kOfResult = slope_of_result(op);

template <class T>
struct Slope {
  UnaryOp which;
  Wide<T> p, q;
  // What the slope is a function of, from what was saved.
  template <UnaryOp op>
  __device__ Wide<T> result_of(T saved) const {
    if constexpr (kOfResult<op> && kIsHalf<T>) return value_of<op>(Wide<T>(saved), p, q);
    return Wide<T>(saved);
  }
  template <int P>
  __device__ Pack<T, P> operator()(const Pack<T, P>& g, const Pack<T, P>& saved) const {
    Pack<T, P> dx;
    select(which, [&]<UnaryOp op>() {
#pragma unroll
      for (int i = 0; i < P; ++i)
        dx.v[i] = convert<T>(Wide<T>(g.v[i]) * slope_of<op>(result_of<op>(saved.v[i]), p, q));
    });
    return dx;
  }
};

// --- Functions of two variables ----------------------------------------------------------------------------

template <class T>
struct Binary {
  BinaryOp which;
  __device__ static Wide<T> of(BinaryOp op, Wide<T> a, Wide<T> b) {
    using W = Wide<T>;
    switch (op) {
      case BinaryOp::add:
        return a + b;
      case BinaryOp::sub:
        return a - b;
      case BinaryOp::mul:
        return a * b;
      case BinaryOp::div:
        return a / b;
      case BinaryOp::maximum:
        return a > b || a != a ? a : b;
      case BinaryOp::minimum:
        return a < b || a != a ? a : b;
      default:
        return a > b ? W(1) : a == b ? W(0.5) : W(0);
    }
  }
  template <int P>
  __device__ Pack<T, P> operator()(const Pack<T, P>& a, const Pack<T, P>& b) const {
    Pack<T, P> y;
#pragma unroll
    for (int i = 0; i < P; ++i) y.v[i] = convert<T>(of(which, Wide<T>(a.v[i]), Wide<T>(b.v[i])));
    return y;
  }
};

template <class T>
struct DivSlope {  // -g a / b^2
  template <int P>
  __device__ Pack<T, P> operator()(const Pack<T, P>& g, const Pack<T, P>& a, const Pack<T, P>& b) const {
    Pack<T, P> db;
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const Wide<T> per_b = Wide<T>(1) / Wide<T>(b.v[i]);
      db.v[i] = convert<T>(-Wide<T>(g.v[i]) * Wide<T>(a.v[i]) * per_b * per_b);
    }
    return db;
  }
};

template <class T>
struct Where {
  template <int P>
  __device__ Pack<T, P> operator()(const Pack<uint8_t, P>& mask, const Pack<T, P>& a,
                                   const Pack<T, P>& b) const {
    Pack<T, P> y;
#pragma unroll
    for (int i = 0; i < P; ++i) y.v[i] = mask.v[i] ? a.v[i] : b.v[i];
    return y;
  }
};

}  // namespace

void unary(UnaryOp op, const Tensor& x, double p, double q, Tensor& y) {
  dispatch_float(x.dtype(), "elementwise", [&]<class T>() {
    for_each<T>(y, Value<T>{op, Wide<T>(p), Wide<T>(q)}, operand<T>(x, y));
  });
}

void unary_backward(UnaryOp op, const Tensor& g, const Tensor& saved, double p, double q, Tensor& dx) {
  dispatch_float(g.dtype(), "elementwise", [&]<class T>() {
    for_each<T>(dx, Slope<T>{op, Wide<T>(p), Wide<T>(q)}, operand<T>(g, dx), operand<T>(saved, dx));
  });
}

void binary(BinaryOp op, const Tensor& a, const Tensor& b, Tensor& y) {
  dispatch_float(a.dtype(), "elementwise",
                 [&]<class T>() { for_each<T>(y, Binary<T>{op}, operand<T>(a, y), operand<T>(b, y)); });
}

void div_backward(const Tensor& g, const Tensor& a, const Tensor& b, Tensor& db) {
  dispatch_float(g.dtype(), "div", [&]<class T>() {
    for_each<T>(db, DivSlope<T>{}, operand<T>(g, db), operand<T>(a, db), operand<T>(b, db));
  });
}

void where(const Tensor& mask, const Tensor& a, const Tensor& b, Tensor& y) {
  dispatch_float(a.dtype(), "where", [&]<class T>() {
    for_each<T>(y, Where<T>{}, operand<uint8_t>(mask, y), operand<T>(a, y), operand<T>(b, y));
  });
}

}  // namespace rivulet::cuda
