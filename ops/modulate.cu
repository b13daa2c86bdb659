#include "ops/modulate.h"

#include "ops/elementwise.cuh"
#include "ops/norm_rows.cuh"

namespace rivulet::cuda {
namespace {

// Each takes packs of the operands in f32 (f64) and gives one of the result.
template <class T, class F>
struct Packed {
  F f;
  template <int P, class... X>
  __device__ Pack<T, P> operator()(const Pack<T, P>& first, const X&... rest) const {
    Pack<T, P> y;
#pragma unroll
    for (int i = 0; i < P; ++i) y.v[i] = convert<T>(f(Wide<T>(first.v[i]), Wide<T>(rest.v[i])...));
    return y;
  }
};

struct Modulate {  // x (1 + scale) + shift
  template <class W>
  __device__ W operator()(W x, W scale, W shift) const {
    return x * (W(1) + scale) + shift;
  }
};
struct ScaleByOnePlus {  // g (1 + scale)
  template <class W>
  __device__ W operator()(W g, W scale) const {
    return g * (W(1) + scale);
  }
};
struct AddGated {  // h + gate * branch
  template <class W>
  __device__ W operator()(W h, W gate, W branch) const {
    return h + gate * branch;
  }
};
struct Multiply {
  template <class W>
  __device__ W operator()(W a, W b) const {
    return a * b;
  }
};

// y = f(x...), where vectors [groups, C] are given as [groups, 1, C].
template <class F, class... X>
void each(const char* who, F f, const Tensor& y, const X&... x) {
  dispatch_float(y.dtype(), who, [&]<class T>() { for_each<T>(y, Packed<T, F>{f}, operand<T>(x, y)...); });
}

Tensor per_row(const Tensor& v) { return v.unsqueeze(1); }

}  // namespace

void modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, Tensor& y) {
  each("modulate", Modulate{}, y, x, per_row(scale), per_row(shift));
}

void modulate_backward(const Tensor& g, const Tensor& x, const Tensor& scale, Tensor& dx, Tensor& dshift,
                       Tensor& dscale) {
  each("modulate", ScaleByOnePlus{}, dx, g, per_row(scale));
  sum_groups(g, x, {}, {}, g.dim(1), dshift, dscale);
}

void layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps, Tensor& y,
                         Tensor& mean, Tensor& r) {
  norm_rows({.centred = true, .offset = 1, .rows_per_group = x.dim(1)}, x, scale, shift, eps, y, mean, r);
}

void layer_norm_modulate_backward(const Tensor& g, const Tensor& x, const Tensor& scale, const Tensor& mean,
                                  const Tensor& r, Tensor& dx, Tensor& dshift, Tensor& dscale) {
  norm_rows_backward({.centred = true, .offset = 1, .rows_per_group = g.dim(1)}, g, x, scale, mean, r, dx,
                     dscale, dshift);
}

void gate_residual(const Tensor& h, const Tensor& gate, const Tensor& branch, Tensor& y) {
  each("gate_residual", AddGated{}, y, h, per_row(gate), branch);
}

void gate_residual_backward(const Tensor& g, const Tensor& gate, const Tensor& branch, Tensor& dbranch,
                            Tensor& dgate) {
  each("gate_residual", Multiply{}, dbranch, g, per_row(gate));
  sum_groups(g, branch, {}, {}, g.dim(1), {}, dgate);
}

}  // namespace rivulet::cuda
