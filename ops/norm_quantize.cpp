#include "ops/norm_quantize.h"

#include "ops/modulate.h"
#include "ops/residual_norm.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace {

NormQuantized one_after_another(const Tensor& h, const Tensor& gate, const Tensor& branch,
                                const Tensor& shift, const Tensor& scale, double eps, const Tensor& given) {
  NormQuantized out;
  if (branch && shift) {
    const ResidualNorm both = gate_residual_norm(h, gate, branch, shift, scale, eps);
    out.h = both.h;
    out.u = both.u;
  } else {
    out.h = branch ? gate_residual(h, gate, branch) : h;
    out.u = shift ? layer_norm_modulate(out.h, shift, scale, eps) : out.h;
  }
  out.q = given ? quantize(out.u, Format::fp8_tensor, given) : quantize(out.u, Format::fp8);
  return out;
}

}  // namespace

NormQuantized norm_quantize(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
                            const Tensor& scale, double eps, bool keep_u, const Tensor& given) {
  check(!will_record({h, gate, branch, shift, scale}), "norm_quantize: has no gradient");
  check(bool(shift) == bool(scale), "norm_quantize: shift and scale come together");
  if constexpr (kHasCuda) {
    const int64_t C = h.dim(-1), rows = h.numel() / std::max<int64_t>(1, C);
    const auto one = [&](const Tensor& t) { return !t || t.numel() == C; };
    if (h.device() == Device::cuda && h.dtype() == DType::bf16 && one(gate) && one(shift) && one(scale) &&
        (!branch || gate)) {
      NormQuantized out;
      const Tensor from = h.contiguous(), add = branch ? branch.contiguous() : branch;
      out.h = branch ? empty_like(from) : from;
      if (shift && keep_u) out.u = empty_like(from);
      out.q = {given ? Format::fp8_tensor : Format::fp8,
               rows,
               C,
               Tensor({rows, C}, DType::u8, Device::cuda),
               given ? given : Tensor({rows}, DType::f32, Device::cuda),
               {}};
      if (cuda::norm_quantize(from, gate, add, shift, scale, eps, branch ? out.h : Tensor(), out.u,
                              out.q.codes, out.q.scales, bool(given))) {
        if (!shift) out.u = out.h;
        return out;
      }
    }
  }
  return one_after_another(h, gate, branch, shift, scale, eps, given);
}

}  // namespace rivulet
