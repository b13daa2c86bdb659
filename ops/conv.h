// Convolutions (cross-correlations) over channels-last images and videos, with zero padding.
//
//   y[o] = bias + sum over taps u of w[u] x[stride o + u - before]
//   dx[i] = sum over taps u of w[u]' dy[(i + before - u) / stride], where that is whole
//   dw[u] = sum over o of dy[o] x[stride o + u - before]'
//
// Saves x and w. (One filter per channel: ops/depthwise_conv; three frames with a carried one:
// ops/temporal_conv.)
#pragma once

#include <array>

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// Per dim: stride, zeros before the first and after the last element. Causal in time means before = k - 1,
// after = 0.
template <size_t dims>
struct ConvSteps {
  std::array<int64_t, dims> stride, before, after;
  explicit ConvSteps(int64_t stride_everywhere = 1, int64_t padding = 0) {
    stride.fill(stride_everywhere);
    before.fill(padding);
    after.fill(padding);
  }
};

// x [B, H, W, C], w [Co, C, kh, kw], bias [Co] or undefined -> [B, Ho, Wo, Co]; steps in the order h, w.
// Ho = (H + before + after - kh) / stride + 1, rounded down.
Tensor conv2d(const Tensor& x, const Tensor& w, const Tensor& bias = {},
              const ConvSteps<2>& steps = ConvSteps<2>());
// x [B, T, H, W, C], w [Co, C, kt, kh, kw] -> [B, To, Ho, Wo, Co]; steps in the order t, h, w.
Tensor conv3d(const Tensor& x, const Tensor& w, const Tensor& bias = {},
              const ConvSteps<3>& steps = ConvSteps<3>());

// What links output and input positions. transposed: the formula of dx instead of that of y.
struct ConvGeometry {
  std::array<int64_t, 3> stride, before;
  bool transposed = false;
};
// Dense tensors of one real dtype: x [B, T, H, W, C], w [Co, kt, kh, kw, C], bias [Co] or undefined.
KERNELS(void conv3d(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvGeometry& geometry,
                    Tensor& y);
        void conv3d_weight_grad(const Tensor& dy, const Tensor& x, const ConvGeometry& geometry, Tensor& dw);)

const OpCase& conv2d_case();
const OpCase& conv3d_case();

}  // namespace rivulet
