// CPU bodies of the elementwise ops. One loop per function on dense runs; one driver that walks broadcast
// and strided operands and hands them to the loop a dense run at a time.
#include "ops/elementwise.h"
#include "ops/fast_math.h"
#include "tensor/strided.h"

namespace rivulet::cpu {
namespace {

// Each function: value(x, p, q) and slope(s, p, q), s being what slope_of_result() says.
// clang-format off
struct Affine {
  template <class T> static T value(T x, T p, T q) { return p * x + q; }
  template <class T> static T slope(T, T p, T) { return p; }
};
struct Reciprocal {
  template <class T> static T value(T x, T p, T) { return p / x; }
  template <class T> static T slope(T x, T p, T) { return -p / (x * x); }
};
struct Exp {
  template <class T> static T value(T x, T, T) { return fast_exp(x); }
  template <class T> static T slope(T y, T, T) { return y; }
};
struct Log {
  template <class T> static T value(T x, T, T) { return fast_log(x); }
  template <class T> static T slope(T x, T, T) { return T(1) / x; }
};
struct Sqrt {
  template <class T> static T value(T x, T, T) { return std::sqrt(x); }
  template <class T> static T slope(T y, T, T) { return T(0.5) / y; }
};
struct Rsqrt {
  template <class T> static T value(T x, T, T) { return T(1) / std::sqrt(x); }
  template <class T> static T slope(T y, T, T) { return T(-0.5) * y * y * y; }
};
struct Square {
  template <class T> static T value(T x, T, T) { return x * x; }
  template <class T> static T slope(T x, T, T) { return T(2) * x; }
};
struct Abs {
  template <class T> static T value(T x, T, T) { return std::fabs(x); }
  template <class T> static T slope(T x, T, T) { return T(x > T(0)) - T(x < T(0)); }
};
struct Pow {
  template <class T> static T value(T x, T p, T) { return std::pow(x, p); }
  template <class T> static T slope(T x, T p, T) { return p * std::pow(x, p - T(1)); }
};
struct Clamp {
  template <class T> static T value(T x, T p, T q) { const T low = x < p ? p : x; return low > q ? q : low; }
  template <class T> static T slope(T x, T p, T q) { return x < p || x > q ? T(0) : T(1); }
};
struct Sigmoid {
  template <class T> static T value(T x, T, T) { return sigmoid_of(x); }
  template <class T> static T slope(T y, T, T) { return y * (T(1) - y); }
};
struct Silu {
  template <class T> static T value(T x, T, T) { return x * sigmoid_of(x); }
  template <class T> static T slope(T x, T, T) { const T s = sigmoid_of(x); return s + x * s * (T(1) - s); }
};
struct Relu {
  template <class T> static T value(T x, T, T) { return x < T(0) ? T(0) : x; }
  template <class T> static T slope(T x, T, T) { return x > T(0) ? T(1) : T(0); }
};
struct GeluTanh {
  // 1 + tanh(u) = 2 sigmoid(2u); the constants are 2 sqrt(2/pi) and 0.044715 of the formula.
  template <class T> static constexpr T kA = T(1.5957691216057308);
  template <class T> static constexpr T kB = T(0.044715);
  template <class T> static T value(T x, T, T) { return x * sigmoid_of(kA<T> * (x + kB<T> * x * x * x)); }
  template <class T> static T slope(T x, T, T) {
    const T s = sigmoid_of(kA<T> * (x + kB<T> * x * x * x));
    return s + x * s * (T(1) - s) * kA<T> * (T(1) + T(3) * kB<T> * x * x);
  }
};
struct Softplus {
  template <class T> static T value(T x, T, T) { return (x < T(0) ? T(0) : x) + fast_log1p(fast_exp(-std::fabs(x))); }
  template <class T> static T slope(T x, T, T) { return sigmoid_of(x); }
};
struct Tanh {
  template <class T> static T value(T x, T, T) { return fast_tanh(x); }
  template <class T> static T slope(T y, T, T) { return T(1) - y * y; }
};
struct Sin {
  template <class T> static T value(T x, T, T) { return std::sin(x); }
  template <class T> static T slope(T x, T, T) { return std::cos(x); }
};
struct Cos {
  template <class T> static T value(T x, T, T) { return std::cos(x); }
  template <class T> static T slope(T x, T, T) { return -std::sin(x); }
};

struct Add { template <class T> static T value(T a, T b) { return a + b; } };
struct Sub { template <class T> static T value(T a, T b) { return a - b; } };
struct Mul { template <class T> static T value(T a, T b) { return a * b; } };
struct Div { template <class T> static T value(T a, T b) { return a / b; } };
// A NaN in either operand is kept.
struct Maximum { template <class T> static T value(T a, T b) { return a > b || a != a ? a : b; } };
struct Minimum { template <class T> static T value(T a, T b) { return a < b || a != a ? a : b; } };
struct Above { template <class T> static T value(T a, T b) { return a > b ? T(1) : a == b ? T(0.5) : T(0); } };
// clang-format on

template <class T>
using UnaryLoop = void (*)(const T* x, T* y, int64_t n, T p, T q);
template <class T>
using SlopeLoop = void (*)(const T* g, const T* saved, T* dx, int64_t n, T p, T q);
template <class T>
using BinaryLoop = void (*)(const T* a, const T* b, T* y, int64_t n);

template <class T>
struct UnaryLoops {
  UnaryLoop<T> value;
  SlopeLoop<T> slope;
};

template <class Op, class T>
constexpr UnaryLoops<T> loops_of() {
  return {[](const T* __restrict x, T* __restrict y, int64_t n, T p, T q) {
            for (int64_t i = 0; i < n; ++i) y[i] = Op::value(x[i], p, q);
          },
          [](const T* __restrict g, const T* __restrict s, T* __restrict dx, int64_t n, T p, T q) {
            for (int64_t i = 0; i < n; ++i) dx[i] = g[i] * Op::slope(s[i], p, q);
          }};
}

// In the order of enum UnaryOp.
template <class T>
UnaryLoops<T> unary_loops(UnaryOp op) {
  static constexpr UnaryLoops<T> table[] = {
      loops_of<Affine, T>(), loops_of<Reciprocal, T>(), loops_of<Exp, T>(),      loops_of<Log, T>(),
      loops_of<Sqrt, T>(),   loops_of<Rsqrt, T>(),      loops_of<Square, T>(),   loops_of<Abs, T>(),
      loops_of<Pow, T>(),    loops_of<Clamp, T>(),      loops_of<Sigmoid, T>(),  loops_of<Silu, T>(),
      loops_of<Relu, T>(),   loops_of<GeluTanh, T>(),   loops_of<Softplus, T>(), loops_of<Tanh, T>(),
      loops_of<Sin, T>(),    loops_of<Cos, T>()};
  return table[int(op)];
}

template <class Op, class T>
void binary_loop(const T* __restrict a, const T* __restrict b, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = Op::value(a[i], b[i]);
}

// In the order of enum BinaryOp.
template <class T>
BinaryLoop<T> binary_loop_of(BinaryOp op) {
  static constexpr BinaryLoop<T> table[] = {
      binary_loop<Add, T>,     binary_loop<Sub, T>,     binary_loop<Mul, T>,  binary_loop<Div, T>,
      binary_loop<Maximum, T>, binary_loop<Minimum, T>, binary_loop<Above, T>};
  return table[int(op)];
}

constexpr int64_t kRun = 1024;  // elements gathered at a time: a few buffers stay in the first-level cache

// n elements from p on, made dense: p itself, or a copy in `buffer`.
template <class T>
const T* dense_run(const T* p, int64_t step, int64_t n, T* buffer) {
  if (step == 1) return p;
  if (step == 0) {
    std::fill_n(buffer, n, *p);
    return buffer;
  }
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i * step];
  return buffer;
}

// f(y, n, inputs as dense runs...) over all of y, which is dense; the inputs broadcast to its shape.
template <class F, class Y, class... X>
void for_each_run(const Tensor& y, F&& f, Y* out, const std::array<Shape, sizeof...(X)>& strides,
                  const X*... in) {
  constexpr int K = sizeof...(X);
  std::array<Shape, K + 1> all;
  std::copy(strides.begin(), strides.end(), all.begin());
  all[K] = y.strides();
  const StridedLoop<K + 1> loop(y.shape(), all);
  bool dense = true;
  for (int k = 0; k < K; ++k) dense = dense && loop.inner(k) == 1;
  loop.for_each_row([&](const std::array<int64_t, K + 1>& at, int64_t n) {
    [&]<size_t... k>(std::index_sequence<k...>) {
      if (dense) return f(out + at[K], n, in + at[k]...);
      std::tuple<std::array<X, kRun>...> buffers;
      for (int64_t i = 0; i < n; i += kRun) {
        const int64_t run = std::min(kRun, n - i);
        f(out + at[K] + i, run,
          dense_run(in + at[k] + i * loop.inner(k), loop.inner(k), run, std::get<k>(buffers).data())...);
      }
    }
    (std::index_sequence_for<X...>{});
  });
}

Shape strides_in(const Tensor& x, const Tensor& y) {
  return broadcast_strides(x.shape(), x.strides(), y.shape());
}

}  // namespace

void unary(UnaryOp op, const Tensor& x, double p, double q, Tensor& y) {
  dispatch_real(x.dtype(), "elementwise", [&]<class T>() {
    const auto loop = unary_loops<T>(op).value;
    for_each_run(
        y, [&](T* out, int64_t n, const T* in) { loop(in, out, n, T(p), T(q)); }, y.data<T>(),
        {strides_in(x, y)}, x.data<T>());
  });
}

void unary_backward(UnaryOp op, const Tensor& g, const Tensor& saved, double p, double q, Tensor& dx) {
  dispatch_real(g.dtype(), "elementwise", [&]<class T>() {
    const auto loop = unary_loops<T>(op).slope;
    for_each_run(
        dx,
        [&](T* out, int64_t n, const T* g_run, const T* s_run) { loop(g_run, s_run, out, n, T(p), T(q)); },
        dx.data<T>(), {strides_in(g, dx), strides_in(saved, dx)}, g.data<T>(), saved.data<T>());
  });
}

void binary(BinaryOp op, const Tensor& a, const Tensor& b, Tensor& y) {
  dispatch_real(a.dtype(), "elementwise", [&]<class T>() {
    const auto loop = binary_loop_of<T>(op);
    for_each_run(
        y, [&](T* out, int64_t n, const T* a_run, const T* b_run) { loop(a_run, b_run, out, n); },
        y.data<T>(), {strides_in(a, y), strides_in(b, y)}, a.data<T>(), b.data<T>());
  });
}

void div_backward(const Tensor& g, const Tensor& a, const Tensor& b, Tensor& db) {
  dispatch_real(g.dtype(), "div", [&]<class T>() {
    for_each_run(
        db,
        [](T* __restrict out, int64_t n, const T* __restrict up, const T* __restrict x,
           const T* __restrict y) {
          for (int64_t i = 0; i < n; ++i) out[i] = -(up[i] / y[i]) * (x[i] / y[i]);
        },
        db.data<T>(), {strides_in(g, db), strides_in(a, db), strides_in(b, db)}, g.data<T>(), a.data<T>(),
        b.data<T>());
  });
}

void where(const Tensor& mask, const Tensor& a, const Tensor& b, Tensor& y) {
  dispatch_real(a.dtype(), "where", [&]<class T>() {
    for_each_run(
        y,
        [](T* __restrict out, int64_t n, const uint8_t* __restrict m, const T* __restrict t,
           const T* __restrict f) {
          for (int64_t i = 0; i < n; ++i) out[i] = m[i] ? t[i] : f[i];
        },
        y.data<T>(), {strides_in(mask, y), strides_in(a, y), strides_in(b, y)}, mask.data<uint8_t>(),
        a.data<T>(), b.data<T>());
  });
}

}  // namespace rivulet::cpu
