// Convolutions (cross-correlations) over channels-last images and videos.
//
//   y[o] = bias + sum over taps u of w[u] x[stride o + u - before]
//   dx[i] = sum over taps u of w[u]' dy[(i + before - u) / stride], where that is whole
//   dw[u] = sum over o of dy[o] x[stride o + u - before]'
//
// where x continues beyond its edges as its border says: with zeros, mirrored or repeated. Places that a
// border reads several times gather the gradients of all of them. Saves x, w and the frames on the left. (One
// filter per channel: ops/depthwise_conv; three frames with a carried one: ops/temporal_conv.)
#pragma once

#include <array>

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// What lies beyond the edge along a dim: zeros, the inside mirrored at the edge element (index -1 reads 1; at
// most n - 1 deep), or the edge element again.
enum class Border : uint8_t { zeros, reflect, replicate };

// Per dim: stride, elements before the first and after the last one, and what they are. Causal in time means
// before = k - 1, after = 0.
template <size_t dims>
struct ConvSteps {
  std::array<int64_t, dims> stride, before, after;
  std::array<Border, dims> border{};
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
// left: what a stream showed before x, oldest first: none, or steps.before[0] frames [B, H, W, C], which then
// stand in for the border in time. They are read where they lie; nothing is joined.
// A w whose memory is ordered [Co, kt, kh, kw, C] (see channels_last_weight) is read in place as well.
Tensor conv3d(const Tensor& x, const Tensor& w, const Tensor& bias = {},
              const ConvSteps<3>& steps = ConvSteps<3>(), const Tensors& left = {});
// Unspecified contents, shape [Co, C, kt, kh, kw], memory in the order that conv3d reads.
Tensor channels_last_weight(const Shape& shape, Device device, DType dtype = DType::f32);

constexpr int64_t kMostLeftFrames = 4;

// What links output and input positions. transposed: the formula of dx instead of that of y, for zero
// borders. left: before[0] dense frames [B, H, W, C], or none.
struct ConvGeometry {
  std::array<int64_t, 3> stride, before;
  bool transposed = false;
  std::array<Border, 3> border = {};
  Tensors left = {};
};
// Dense tensors of one dtype, f32, f64 or on the GPU bf16: x [B, T, H, W, C], w [Co, kt, kh, kw, C], bias [Co] or undefined.
KERNELS(void conv3d(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvGeometry& geometry,
                    Tensor& y);
        void conv3d_weight_grad(const Tensor& dy, const Tensor& x, const ConvGeometry& geometry, Tensor& dw);)

namespace cuda {
// Whether the tensor cores take a bf16 convolution: stride 1 and channels in multiples of 8. Others go through
// f32.
bool has_conv3d_bf16(const Shape& x, const Shape& w, const std::array<int64_t, 3>& stride,
                     const std::array<int64_t, 3>& out);
}  // namespace cuda

const OpCase& conv2d_case();
const OpCase& conv3d_case();
const OpCase& conv3d_border_case();
const OpCase& conv3d_channels_case();

}  // namespace rivulet
