#include "ops/gdn_decay.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/half.h"

namespace rivulet {
namespace cpu {

void gdn_decay(const Tensor& logits, const Tensor& dt_bias, const Tensor& A_log, Tensor& x, Tensor& decay) {
  dispatch_real(logits.dtype(), "gdn_decay", [&]<class T>() {
    const Shape& step = logits.strides();
    const int64_t frames = logits.dim(1), tokens = logits.dim(2), heads = logits.dim(3);
    for (int64_t i = 0; i < logits.dim(0) * frames; ++i)
      for (int64_t h = 0; h < heads; ++h) {
        const T* from = logits.data<T>() + i / frames * step[0] + i % frames * step[1] + h * step[3];
        double sum = 0;
        for (int64_t s = 0; s < tokens; ++s) sum += double(from[s * step[2]]);
        const double at = sum / double(tokens) + double(dt_bias.data<T>()[h]);
        const double softplus = std::max(at, 0.0) + std::log1p(std::exp(-std::abs(at)));
        x.data<T>()[i * heads + h] = T(at);
        decay.data<T>()[i * heads + h] = T(std::exp(-std::exp(double(A_log.data<T>()[h])) * softplus));
      }
  });
}

}  // namespace cpu

Tensor gdn_decay(const Tensor& logits, const Tensor& dt_bias, const Tensor& A_log) {
  check(logits.dims() == 4 && logits.numel() > 0, "gdn_decay: logits have shape ", logits.shape(),
        ", wanted [B, T, S, H]");
  const Shape per_head{logits.dim(3)};
  check(dt_bias.shape() == per_head && A_log.shape() == per_head, "gdn_decay: dt_bias has shape ",
        dt_bias.shape(), ", A_log ", A_log.shape(), ", logits ", logits.shape());
  if (needs_f32({logits, dt_bias, A_log}))
    return gdn_decay(logits.to(DType::f32), dt_bias.to(DType::f32), A_log.to(DType::f32));
  check_same_type("gdn_decay", {logits, dt_bias, A_log});
  Tensor x({logits.dim(0), logits.dim(1), logits.dim(3)}, accumulate_dtype(logits.dtype()), logits.device());
  Tensor decay = empty_like(x);
  ON_DEVICE(x,
            gdn_decay(logits.detach(), dt_bias.detach().contiguous(), A_log.detach().contiguous(), x, decay));
  return record("gdn_decay", decay, {logits, dt_bias, A_log},
                [x, decay = decay.detach(), A_log = A_log.detach(), shape = logits.shape(),
                 dtype = logits.dtype()](const Tensor& g) -> Tensors {
                  const Tensor p = neg(g * decay * exp(A_log.to(x.dtype())));
                  const Tensor dx = p * sigmoid(x);
                  const auto per_head = [&](const Tensor& t) {
                    return sum_to(t, {1, 1, shape[3]}).reshape({shape[3]}).to(dtype);
                  };
                  return {(dx / double(shape[2])).unsqueeze(2).expand(shape).to(dtype).contiguous(),
                          per_head(dx), per_head(p * softplus(x))};
                });
}

const OpCase& gdn_decay_case() {
  static const OpCase the_case = {
      .name = "gdn_decay",
      .run = [](const Tensors& in) -> Tensors { return {gdn_decay(in[0], in[1], in[2])}; },
      .check = {{{2, 3, 5, 4}, {4}, {4}}, {{1, 1, 1, 1}, {1}, {1}}, {{1, 2, 33, 3}, {3}, {3}}},
      .bench = {{{1, 3, 880, 20}, {20}, {20}}},
      .bytes = [](const Shapes& s) { return bytes_of(s); },
      .flops = [](const Shapes& s) { return double(s[0].numel()); }};
  return the_case;
}

}  // namespace rivulet
