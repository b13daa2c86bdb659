#include "ops/causal_softmax.h"

#include <cmath>
#include <limits>

#include "ops/half.h"
#include "ops/rows.h"

namespace rivulet {
namespace cpu {
namespace {

// Keys [first, end) of a row that the order and the window leave.
struct KeyRange {
  int64_t first, end;
  KeyRange(int64_t query, int64_t window)
      : first(window > 0 ? std::max<int64_t>(0, query + 1 - window) : 0), end(query + 1) {}
};

}  // namespace

void causal_softmax(const Tensor& s, const CausalSoftmax& o, const Tensor& key_mask, Tensor& p) {
  dispatch_real(s.dtype(), "causal_softmax", [&]<class T>() {
    const int64_t heads = s.dim(1), n = s.dim(3);
    const T scale = T(o.scale), cap = T(o.cap);
    for_rows(s, [&](int64_t row) {
      const KeyRange keys(row % n, o.window);
      const uint8_t* mask = key_mask ? key_mask.data<uint8_t>() + row / (heads * n) * n : nullptr;
      const T* in = s.data<T>() + row * n;
      T* out = p.data<T>() + row * n;
      std::fill(out, out + n, T(0));
      T top = -std::numeric_limits<T>::infinity(), sum = 0;
      for (int64_t j = keys.first; j < keys.end; ++j) {
        if (mask && !mask[j]) continue;
        const T z = scale * in[j];
        out[j] = cap > 0 ? cap * std::tanh(z / cap) : z;
        top = std::max(top, out[j]);
      }
      for (int64_t j = keys.first; j < keys.end; ++j) {
        if (mask && !mask[j]) continue;
        out[j] = std::exp(out[j] - top);
        sum += out[j];
      }
      for (int64_t j = keys.first; j < keys.end; ++j)
        if (sum > 0) out[j] /= sum;
    });
  });
}

void causal_softmax_backward(const Tensor& dp, const Tensor& s, const Tensor& p, const CausalSoftmax& o,
                             Tensor& ds) {
  dispatch_real(p.dtype(), "causal_softmax", [&]<class T>() {
    const int64_t n = p.dim(3);
    const T scale = T(o.scale), cap = T(o.cap);
    for_rows(p, [&](int64_t row) {
      const T *up = dp.data<T>() + row * n, *weight = p.data<T>() + row * n;
      T *out = ds.data<T>() + row * n, dot = 0;
      for (int64_t j = 0; j < n; ++j) dot += up[j] * weight[j];
      for (int64_t j = 0; j < n; ++j) out[j] = scale * weight[j] * (up[j] - dot);
      if (!s) return;
      for (int64_t j = 0; j < n; ++j) {
        const T t = std::tanh(scale * s.data<T>()[row * n + j] / cap);
        out[j] *= 1 - t * t;
      }
    });
  });
}

}  // namespace cpu

Tensor causal_softmax(const Tensor& s, const CausalSoftmax& o, const Tensor& key_mask) {
  check(s.dims() == 4 && s.dim(2) == s.dim(3), "causal_softmax: s has shape ", s.shape(),
        ", wanted [B, H, N, N]");
  check(o.cap >= 0 && o.window >= 0, "causal_softmax: cap ", o.cap, ", window ", o.window,
        ", neither may be negative");
  check(!key_mask || (key_mask.shape() == Shape{s.dim(0), s.dim(3)} && key_mask.dtype() == DType::u8),
        "causal_softmax: key_mask is ", key_mask ? key_mask.dtype() : DType::u8, " of shape ",
        key_mask ? key_mask.shape() : Shape{}, " for s ", s.shape());
  if (any_half({s}))
    return through_f32({s}, [&](const Tensors& t) { return causal_softmax(t[0], o, key_mask); });
  check_same_type("causal_softmax", {s});
  const Tensor in = s.detach().contiguous(), mask = key_mask ? key_mask.contiguous() : key_mask;
  Tensor p = empty_like(in);
  ON_DEVICE(in, causal_softmax(in, o, mask, p));
  const Tensor kept = o.cap > 0 ? in : Tensor();
  return record("causal_softmax", p, {s}, [=](const Tensor& dp) -> Tensors {
    const Tensor up = dp.contiguous();
    Tensor ds = empty_like(p);
    ON_DEVICE(up, causal_softmax_backward(up, kept, p, o, ds));
    return {ds};
  });
}

namespace {

// The mask hides every third key, so that the first query of the second batch entry sees nothing.
Tensor fill_softmax(const Shape& shape, int i, Rng& rng, DType dtype) {
  if (i == 0) return randn(shape, rng, dtype);
  Tensor mask(shape, DType::u8);
  for (int64_t j = 0; j < mask.numel(); ++j) mask.data<uint8_t>()[j] = (j % shape[1] + j / shape[1]) % 3 != 1;
  return mask;
}
double softmax_bytes(const Shapes& s) { return 2 * bytes_of({s[0]}); }

}  // namespace

const OpCase& causal_softmax_case() {
  static const OpCase kCase = {
      .name = "causal_softmax",
      .run = [](const Tensors& in) -> Tensors { return {causal_softmax(in[0], {.scale = 0.7})}; },
      .check = {{{2, 3, 5, 5}}, {{1, 1, 1, 1}}, {{1, 2, 37, 37}}},
      .bench = {{{1, 8, 407, 407}}},
      .bytes = softmax_bytes,
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel()); },
  };
  return kCase;
}

const OpCase& causal_softmax_capped_case() {
  static const OpCase kCase = {
      .name = "causal_softmax_capped",
      .run = [](const Tensors& in) -> Tensors {
        return {causal_softmax(in[0], {.scale = 1.3, .cap = 2, .window = 4}, in[1])};
      },
      .check = {{{2, 3, 5, 5}, {2, 5}}, {{1, 1, 1, 1}, {1, 1}}, {{2, 1, 35, 35}, {2, 35}}},
      .bench = {{{1, 8, 407, 407}, {1, 407}}},
      .bytes = softmax_bytes,
      .flops = [](const Shapes& s) { return 2.0 * double(s[0].numel()); },
      .fill = fill_softmax,
  };
  return kCase;
}

}  // namespace rivulet
