// GPU bodies of the elementwise ops: one kernel that walks broadcast and strided operands in packs of 16
// bytes where it can, and a function object that says what to do with a pack.
#include "ops/elementwise.h"

#include <utility>

#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// How the elements of a pack lie in an operand: all the same one, neighbours moved by one load, or `step`
// elements apart.
enum class Lane : int { repeated, packed, apart };

// K operands along the packs of a dense result.
template <int K>
struct Walk {
  StridedIndex<K> index;
  Lane lane[K];
  int64_t step[K];
};

template <int P, class X>
__device__ Pack<X, P> gather(const X* x, Lane lane, int64_t step) {
  if (P > 1 && lane == Lane::packed) return load_pack<X, P>(x);
  Pack<X, P> out;
#pragma unroll
  for (int i = 0; i < P; ++i) out.v[i] = x[lane == Lane::repeated ? 0 : i * step];
  return out;
}

template <int P, class F, class Y, class... X>
__global__ void elementwise(Y* y, uint32_t packs, F f, Walk<sizeof...(X)> walk, const X*... x) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  int64_t at[sizeof...(X)];
  walk.index.at(i, at);
  [&]<size_t... k>(std::index_sequence<k...>) {
    store_pack<Y, P>(y + int64_t(i) * P, f(gather<P>(x + at[k], walk.lane[k], walk.step[k])...));
  }
  (std::index_sequence_for<X...>{});
}

template <class X>
struct Operand {
  const X* data;
  Shape strides;  // in the shape of the result
};
template <class X>
Operand<X> operand(const Tensor& x, const Tensor& y) {
  return {pointer<X>(x), broadcast_strides(x.shape(), x.strides(), y.shape())};
}

template <int P, class F, class Y, class... X>
void launch_packs(Y* y, StridedLoop<sizeof...(X)> loop, F f, const Operand<X>&... x) {
  constexpr int K = sizeof...(X);
  const int inner = loop.shape.size() - 1;
  std::array<Lane, K> lane;
  std::array<int64_t, K> step;
  const std::array<bool, K> aligned{is_aligned(x.data, P * sizeof(X))...};
  loop.shape[inner] /= P;
  for (int k = 0; k < K; ++k) {
    step[k] = loop.strides[k][inner];
    loop.strides[k][inner] *= P;
    bool packs = step[k] == 1 && aligned[k];
    for (int d = 0; d < inner; ++d) packs = packs && loop.strides[k][d] % P == 0;
    lane[k] = step[k] == 0 ? Lane::repeated : packs ? Lane::packed : Lane::apart;
  }
  Walk<K> walk{StridedIndex<K>(loop), {}, {}};
  for (int k = 0; k < K; ++k) {
    walk.lane[k] = lane[k];
    walk.step[k] = step[k];
  }
  const int64_t packs = loop.shape.numel();
  launch({blocks_for(packs, kThreads), kThreads}, elementwise<P, F, Y, X...>, y, uint32_t(packs), f, walk,
         x.data...);
}

// y = f(x...) over all of y, which is dense. F takes and returns packs of any length.
template <class Y, class F, class... X>
void for_each(const Tensor& y, F f, const Operand<X>&... x) {
  if (y.numel() == 0) return;
  constexpr int P = kPack<Y>;
  const StridedLoop<sizeof...(X)> loop(y.shape(), {x.strides...});
  Y* out = pointer<Y>(y);
  if (loop.shape[loop.shape.size() - 1] % P == 0 && is_aligned(out, 16))
    launch_packs<P>(out, loop, f, x...);
  else
    launch_packs<1>(out, loop, f, x...);
}

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

// The derivative; s is x, or y by saves_result().
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

template <class T>
struct Slope {
  UnaryOp which;
  Wide<T> p, q;
  template <int P>
  __device__ Pack<T, P> operator()(const Pack<T, P>& g, const Pack<T, P>& saved) const {
    Pack<T, P> dx;
    select(which, [&]<UnaryOp op>() {
#pragma unroll
      for (int i = 0; i < P; ++i)
        dx.v[i] = convert<T>(Wide<T>(g.v[i]) * slope_of<op>(Wide<T>(saved.v[i]), p, q));
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

void where(const Tensor& mask, const Tensor& a, const Tensor& b, Tensor& y) {
  dispatch_float(a.dtype(), "where", [&]<class T>() {
    for_each<T>(y, Where<T>{}, operand<uint8_t>(mask, y), operand<T>(a, y), operand<T>(b, y));
  });
}

}  // namespace rivulet::cuda
