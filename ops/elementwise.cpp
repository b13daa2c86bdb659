#include "ops/elementwise.h"

#include "ops/half.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace {

Tensor unary(const char* name, UnaryOp op, const Tensor& x, double p = 0, double q = 0) {
  check_same_type(name, {x});
  if (needs_f32(x)) return unary(name, op, x.to(DType::f32), p, q).to(x.dtype());
  Tensor y = empty_like(x);
  ON_DEVICE(x, unary(op, x, p, q, y));
  const Tensor saved = saves_result(op, x.dtype()) ? y : x.detach();
  return record(name, y, {x}, [=](const Tensor& dy) -> Tensors {
    Tensor dx = empty_like(saved);
    ON_DEVICE(dx, unary_backward(op, dy, saved, p, q, dx));
    return {dx};
  });
}

// Without the tape.
Tensor compute(BinaryOp op, const Tensor& a, const Tensor& b) {
  Tensor y(broadcast_shapes(a.shape(), b.shape(), "elementwise"), a.dtype(), a.device());
  ON_DEVICE(y, binary(op, a, b, y));
  return y;
}
Tensor scaled(const Tensor& x, double s) {
  Tensor y = empty_like(x);
  ON_DEVICE(y, unary(UnaryOp::affine, x, s, 0, y));
  return y;
}

// Gradient of the first (which = 0) or second operand, in the shape of the result.
Tensor binary_gradient(BinaryOp op, int which, const Tensor& g, const Tensor& a, const Tensor& b) {
  switch (op) {
    case BinaryOp::add:
      return g;
    case BinaryOp::sub:
      return which == 0 ? g : scaled(g, -1);
    case BinaryOp::mul:
      return compute(BinaryOp::mul, g, which == 0 ? b : a);
    case BinaryOp::div: {
      if (which == 0) return compute(BinaryOp::div, g, b);
      Tensor db = empty_like(g);
      ON_DEVICE(g, div_backward(g, a, b, db));
      return db;
    }
    default: {
      const bool first = (op == BinaryOp::maximum) == (which == 0);
      return compute(BinaryOp::mul, g,
                     first ? compute(BinaryOp::above, a, b) : compute(BinaryOp::above, b, a));
    }
  }
}

Tensor binary(const char* name, BinaryOp op, const Tensor& a, const Tensor& b) {
  if (needs_f32({a, b}))
    return through_f32({a, b}, [&](const Tensors& t) { return binary(name, op, t[0], t[1]); });
  check_same_type(name, {a, b});
  Tensor y(broadcast_shapes(a.shape(), b.shape(), name), a.dtype(), a.device());
  ON_DEVICE(y, binary(op, a, b, y));
  const bool need_a = a.requires_grad(), need_b = b.requires_grad();
  const bool saves = op != BinaryOp::add && op != BinaryOp::sub;
  const Tensor sa = saves ? a.detach() : Tensor(), sb = saves ? b.detach() : Tensor();
  const Shape shape_a = a.shape(), shape_b = b.shape();
  return record(name, y, {a, b}, [=](const Tensor& g) -> Tensors {
    return {need_a ? sum_to(binary_gradient(op, 0, g, sa, sb), shape_a) : Tensor(),
            need_b ? sum_to(binary_gradient(op, 1, g, sa, sb), shape_b) : Tensor()};
  });
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) { return binary("add", BinaryOp::add, a, b); }
Tensor sub(const Tensor& a, const Tensor& b) { return binary("sub", BinaryOp::sub, a, b); }
Tensor mul(const Tensor& a, const Tensor& b) { return binary("mul", BinaryOp::mul, a, b); }
Tensor div(const Tensor& a, const Tensor& b) { return binary("div", BinaryOp::div, a, b); }
Tensor maximum(const Tensor& a, const Tensor& b) { return binary("maximum", BinaryOp::maximum, a, b); }
Tensor minimum(const Tensor& a, const Tensor& b) { return binary("minimum", BinaryOp::minimum, a, b); }

Tensor affine(const Tensor& x, double scale, double shift) {
  return unary("affine", UnaryOp::affine, x, scale, shift);
}
Tensor operator/(double s, const Tensor& x) { return unary("reciprocal", UnaryOp::reciprocal, x, s); }
Tensor neg(const Tensor& x) { return unary("neg", UnaryOp::affine, x, -1, 0); }
Tensor exp(const Tensor& x) { return unary("exp", UnaryOp::exp, x); }
Tensor log(const Tensor& x) { return unary("log", UnaryOp::log, x); }
Tensor sqrt(const Tensor& x) { return unary("sqrt", UnaryOp::sqrt, x); }
Tensor rsqrt(const Tensor& x) { return unary("rsqrt", UnaryOp::rsqrt, x); }
Tensor square(const Tensor& x) { return unary("square", UnaryOp::square, x); }
Tensor abs(const Tensor& x) { return unary("abs", UnaryOp::abs, x); }
Tensor pow_scalar(const Tensor& x, double exponent) { return unary("pow_scalar", UnaryOp::pow, x, exponent); }
Tensor clamp(const Tensor& x, double low, double high) {
  check(low <= high, "clamp: low ", low, " is above high ", high);
  return unary("clamp", UnaryOp::clamp, x, low, high);
}
Tensor sigmoid(const Tensor& x) { return unary("sigmoid", UnaryOp::sigmoid, x); }
Tensor silu(const Tensor& x) { return unary("silu", UnaryOp::silu, x); }
Tensor relu(const Tensor& x) { return unary("relu", UnaryOp::relu, x); }
Tensor gelu_tanh(const Tensor& x) { return unary("gelu_tanh", UnaryOp::gelu_tanh, x); }
Tensor softplus(const Tensor& x) { return unary("softplus", UnaryOp::softplus, x); }
Tensor tanh(const Tensor& x) { return unary("tanh", UnaryOp::tanh, x); }
Tensor sin(const Tensor& x) { return unary("sin", UnaryOp::sin, x); }
Tensor cos(const Tensor& x) { return unary("cos", UnaryOp::cos, x); }

Tensor where(const Tensor& mask, const Tensor& a, const Tensor& b) {
  check(mask.dtype() == DType::u8, "where: the mask is ", mask.dtype(), ", not u8");
  if (needs_f32({a, b}))
    return through_f32({a, b}, [&](const Tensors& t) { return where(mask, t[0], t[1]); });
  check_same_type("where", {a, b});
  Tensor y(broadcast_shapes(broadcast_shapes(a.shape(), b.shape(), "where"), mask.shape(), "where"),
           a.dtype(), a.device());
  ON_DEVICE(y, where(mask, a, b, y));
  const Shape shape_a = a.shape(), shape_b = b.shape();
  return record("where", y, {a, b}, [=](const Tensor& g) -> Tensors {
    const Tensor zero = zeros({}, g.dtype(), g.device());
    Tensor da = empty_like(g), db = empty_like(g);
    ON_DEVICE(g, where(mask, g, zero, da));
    ON_DEVICE(g, where(mask, zero, g, db));
    return {sum_to(da, shape_a), sum_to(db, shape_b)};
  });
}

// --- Cases -------------------------------------------------------------------------------------------

namespace {

// Values in [0.5, 2.5): the domain of log, roots, quotients and real powers.
Tensor positive(const Shape& shape, int, Rng& rng, DType dtype) {
  return rand_uniform(shape, 0.5, 2.5, rng, dtype);
}

using Unary = Tensor (*)(const Tensor&);

OpCase unary_case(const char* name, Unary op, bool positive_only = false) {
  OpCase c{.name = name,
           .run = [op](const Tensors& in) -> Tensors { return {op(in[0])}; },
           .check = {{{3, 7}}, {{1}}, {{2, 3, 5}}},
           .bench = {{{1728, 768}}},
           .bytes = [](const Shapes& s) { return 2 * bytes_of(s); },
           .flops = [](const Shapes& s) { return double(s[0].numel()); }};
  if (positive_only) c.fill = positive;
  return c;
}

OpCase binary_case(const char* name, Tensor (*op)(const Tensor&, const Tensor&), bool positive_only = false) {
  OpCase c{
      .name = name,
      .run = [op](const Tensors& in) -> Tensors { return {op(in[0], in[1])}; },
      .check = {{{3, 7}, {3, 7}}, {{2, 3, 5}, {5}}, {{2, 1, 4}, {3, 1}}, {{1}, {2, 2}}, {{}, {3}}},
      .bench = {{{1728, 768}, {1728, 768}}, {{1728, 768}, {768}}, {{1728, 768}, {1728, 1}}},
      .bytes =
          [](const Shapes& s) { return bytes_of(s) + bytes_of({broadcast_shapes(s[0], s[1], "bytes")}); },
      .flops = [](const Shapes& s) { return double(broadcast_shapes(s[0], s[1], "flops").numel()); }};
  if (positive_only) c.fill = positive;
  return c;
}

OpCase make_where_case() {
  return {.name = "where",
          .run = [](const Tensors& in) -> Tensors { return {where(in[0], in[1], in[2])}; },
          .check = {{{3, 7}, {3, 7}, {3, 7}}, {{4, 1}, {2, 1, 5}, {5}}, {{1}, {1}, {1}}},
          .bench = {{{1728, 768}, {1728, 768}, {1728, 768}}},
          .bytes =
              [](const Shapes& s) {
                return s[0].numel() + bytes_of({s[1], s[2], s[1]});
              },
          .flops = [](const Shapes& s) { return double(s[1].numel()); },
          .fill =
              [](const Shape& shape, int i, Rng& rng, DType dtype) {
                if (i > 0) return randn(shape, rng, dtype);
                Tensor mask(shape, DType::u8);
                for (int64_t k = 0; k < mask.numel(); ++k) mask.data<uint8_t>()[k] = uint8_t(rng.below(2));
                return mask;
              }};
}

}  // namespace

#define RIVULET_CASE(name, ...)                 \
  const OpCase& name##_case() {                 \
    static const OpCase the_case = __VA_ARGS__; \
    return the_case;                            \
  }
RIVULET_CASE(add, binary_case("add", add))
RIVULET_CASE(sub, binary_case("sub", sub))
RIVULET_CASE(mul, binary_case("mul", mul))
RIVULET_CASE(div, binary_case("div", div, true))
RIVULET_CASE(maximum, binary_case("maximum", maximum))
RIVULET_CASE(minimum, binary_case("minimum", minimum))
RIVULET_CASE(affine, unary_case("affine", [](const Tensor& x) { return affine(x, -1.5, 0.25); }))
RIVULET_CASE(reciprocal, unary_case(
                             "reciprocal", [](const Tensor& x) { return 3.0 / x; }, true))
RIVULET_CASE(neg, unary_case("neg", neg))
RIVULET_CASE(exp, unary_case("exp", exp))
RIVULET_CASE(log, unary_case("log", log, true))
RIVULET_CASE(sqrt, unary_case("sqrt", sqrt, true))
RIVULET_CASE(rsqrt, unary_case("rsqrt", rsqrt, true))
RIVULET_CASE(square, unary_case("square", square))
RIVULET_CASE(abs, unary_case("abs", abs))
RIVULET_CASE(pow_scalar, unary_case(
                             "pow_scalar", [](const Tensor& x) { return pow_scalar(x, 1.7); }, true))
RIVULET_CASE(clamp, unary_case("clamp", [](const Tensor& x) { return clamp(x, -0.4, 0.9); }))
RIVULET_CASE(sigmoid, unary_case("sigmoid", sigmoid))
RIVULET_CASE(silu, unary_case("silu", silu))
RIVULET_CASE(relu, unary_case("relu", relu))
RIVULET_CASE(gelu_tanh, unary_case("gelu_tanh", gelu_tanh))
RIVULET_CASE(softplus, unary_case("softplus", softplus))
RIVULET_CASE(tanh, unary_case("tanh", tanh))
RIVULET_CASE(sin, unary_case("sin", sin))
RIVULET_CASE(cos, unary_case("cos", cos))
RIVULET_CASE(where, make_where_case())

}  // namespace rivulet
