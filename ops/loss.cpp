#include "ops/loss.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/half.h"
#include "ops/reduce.h"
#include "tensor/autograd.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {
namespace {

// f(value, slope) with the two functions of d for this op, as lambdas that inline.
template <class T, class F>
void with_loss(LossOp op, T eps, F&& f) {
  switch (op) {
    case LossOp::square:
      return f([](T d) { return d * d; }, [](T d) { return T(2) * d; });
    case LossOp::absolute:
      return f([](T d) { return std::fabs(d); }, [](T d) { return T(d > T(0)) - T(d < T(0)); });
    case LossOp::charbonnier:
      return f([eps](T d) { return std::sqrt(d * d + eps * eps); },
               [eps](T d) { return d / std::sqrt(d * d + eps * eps); });
  }
}

// Sum of f(a - b, j) over [begin, end): short enough for a sum in T.
template <class T, class F>
T block_sum(const T* a, const T* b, int64_t begin, int64_t end, F f) {
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t j = begin; j < end; ++j) s += f(a[j] - b[j], j);
  return s;
}

constexpr int64_t kPiece = 16384;

}  // namespace

void loss(LossOp op, const Tensor& a, const Tensor& b, const Tensor& mask, double eps, double divisor,
          Tensor& y) {
  dispatch_real(a.dtype(), "loss", [&]<class T>() {
    const int64_t n = a.numel();
    const T *pa = a.data<T>(), *pb = b.data<T>(), *m = mask ? mask.data<T>() : nullptr;
    std::vector<double> sums(size_t((n + kPiece - 1) / kPiece));
    with_loss<T>(op, T(eps), [&](auto value, auto) {
      parallel_for(n, kPiece, [&](int64_t begin, int64_t end) {
        double total = 0;
        for (int64_t i = begin; i < end; i += 256) {
          const int64_t stop = std::min(end, i + 256);
          total +=
              double(m ? block_sum(pa, pb, i, stop, [m, value](T d, int64_t j) { return m[j] * value(d); })
                       : block_sum(pa, pb, i, stop, [value](T d, int64_t) { return value(d); }));
        }
        sums[size_t(begin / kPiece)] = total;
      });
    });
    double total = 0;
    for (double s : sums) total += s;
    *y.data<T>() = T(total / divisor);
  });
}

void loss_backward(LossOp op, const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& mask,
                   double eps, double scale, Tensor& da) {
  dispatch_real(a.dtype(), "loss", [&]<class T>() {
    const T *pa = a.data<T>(), *pb = b.data<T>(), *m = mask ? mask.data<T>() : nullptr;
    const T factor = T(*g.data<T>() * scale);
    T* out = da.data<T>();
    with_loss<T>(op, T(eps), [&](auto, auto slope) {
      parallel_for(a.numel(), kPiece, [&](int64_t begin, int64_t end) {
        if (m) {
          for (int64_t i = begin; i < end; ++i) out[i] = factor * m[i] * slope(pa[i] - pb[i]);
        } else {
          for (int64_t i = begin; i < end; ++i) out[i] = factor * slope(pa[i] - pb[i]);
        }
      });
    });
  });
}

}  // namespace cpu

namespace {

Tensor widened(const Tensor& x) { return is_half(x.dtype()) ? x.to(DType::f32) : x; }

Tensor loss(const char* name, LossOp op, const Tensor& a_any, const Tensor& b_any, const Tensor& mask_any,
            double eps) {
  const Tensor a = widened(a_any), b = widened(b_any);
  check_same_type(name, {a, b});
  check(a.shape() == b.shape() && a.numel() > 0, name, ": shapes ", a.shape(), " and ", b.shape());
  Tensor mask;
  double divisor = double(a.numel());
  if (mask_any) {
    check(broadcast_shapes(a.shape(), mask_any.shape(), name) == a.shape(), name, ": mask has shape ",
          mask_any.shape(), ", a ", a.shape());
    const Tensor m = mask_any.detach().to(a.dtype());
    divisor = sum(m.to(DType::f64)).item() * double(a.numel()) / double(m.numel());
    check(divisor >= 0, name, ": the mask sums to ", divisor);
    mask = m.expand(a.shape()).contiguous();
  }
  const Tensor pa = a.detach().contiguous(), pb = b.detach().contiguous();
  const double weight = divisor > 0 ? 1 / divisor : 0;
  Tensor y({}, a.dtype(), a.device());
  ON_DEVICE(a, loss(op, pa, pb, mask, eps, divisor > 0 ? divisor : 1, y));
  const bool need_a = a.requires_grad(), need_b = b.requires_grad();
  return record(name, y, {a, b}, [=](const Tensor& dy) -> Tensors {
    const Tensor g = dy.contiguous();
    Tensor da = empty_like(pa);
    ON_DEVICE(g, loss_backward(op, g, pa, pb, mask, eps, weight, da));
    return {need_a ? da : Tensor(), need_b ? neg(da) : Tensor()};
  });
}

}  // namespace

Tensor mse_loss(const Tensor& a, const Tensor& b) { return loss("mse_loss", LossOp::square, a, b, {}, 0); }
Tensor masked_mse(const Tensor& a, const Tensor& b, const Tensor& mask) {
  check(mask.defined(), "masked_mse: the mask is undefined");
  return loss("masked_mse", LossOp::square, a, b, mask, 0);
}
Tensor l1_loss(const Tensor& a, const Tensor& b) { return loss("l1_loss", LossOp::absolute, a, b, {}, 0); }
Tensor charbonnier(const Tensor& a, const Tensor& b, double eps) {
  return loss("charbonnier", LossOp::charbonnier, a, b, {}, eps);
}

// --- Cases -------------------------------------------------------------------------------------------

namespace {

OpCase loss_case(const char* name, Tensor (*op)(const Tensor&, const Tensor&)) {
  return {.name = name,
          .run = [op](const Tensors& in) -> Tensors { return {op(in[0], in[1])}; },
          .check = {{{3, 7}, {3, 7}}, {{1}, {1}}, {{2, 3, 5}, {2, 3, 5}}},
          .bench = {{{1728, 768}, {1728, 768}}},
          .bytes = [](const Shapes& s) { return bytes_of(s); },
          .flops = [](const Shapes& s) { return 3.0 * double(s[0].numel()); }};
}

OpCase make_masked_mse_case() {
  OpCase c = loss_case("masked_mse", [](const Tensor&, const Tensor&) { return Tensor(); });
  c.run = [](const Tensors& in) -> Tensors { return {masked_mse(in[0], in[1], in[2])}; };
  c.check = {{{3, 7}, {3, 7}, {3, 7}}, {{2, 3, 5}, {2, 3, 5}, {3, 1}}, {{1}, {1}, {1}}};
  c.bench = {{{1728, 768}, {1728, 768}, {1728, 1}}};
  c.fill = [](const Shape& shape, int i, Rng& rng, DType dtype) {
    return i < 2 ? randn(shape, rng, dtype) : rand_uniform(shape, 0, 1, rng, dtype);
  };
  c.differentiable = {true, true, false};
  return c;
}

}  // namespace

const OpCase& mse_loss_case() {
  static const OpCase the_case = loss_case("mse_loss", mse_loss);
  return the_case;
}
const OpCase& masked_mse_case() {
  static const OpCase the_case = make_masked_mse_case();
  return the_case;
}
const OpCase& l1_loss_case() {
  static const OpCase the_case = loss_case("l1_loss", l1_loss);
  return the_case;
}
const OpCase& charbonnier_case() {
  static const OpCase the_case =
      loss_case("charbonnier", [](const Tensor& a, const Tensor& b) { return charbonnier(a, b, 0.1); });
  return the_case;
}

}  // namespace rivulet
