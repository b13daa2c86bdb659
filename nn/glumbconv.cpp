#include "nn/glumbconv.h"

#include "ops/depthwise_glu.h"
#include "ops/elementwise.h"
#include "ops/temporal_conv.h"

namespace rivulet {

GluMbConv::GluMbConv(int64_t width, int64_t hidden, Device device)
    : inverted_conv{Linear({2 * hidden, width, 1, 1}, true, device)},
      depth_conv{Linear({2 * hidden, 1, 3, 3}, true, device)},
      point_conv{Linear({width, hidden, 1, 1}, false, device)},
      t_conv{Tensor({width, width, 3, 1}, DType::f32, device)} {}

Tensor GluMbConv::operator()(const Tensor& u, const Grid& grid, const Tensor& left, Tensor* tail) const {
  const int64_t B = u.dim(0), T = u.dim(1), S = u.dim(2);
  const Linear& up = inverted_conv.conv;
  const Tensor &filters = depth_conv.conv.weight, &filter_bias = depth_conv.conv.bias;
  const Shape image{B * T, grid.H, grid.W, -1};
  // The GPU activates what it loads, the CPU what a product leaves in its cache.
  const Tensor gated =
      u.device() == Device::cuda
          ? silu_depthwise_glu(up(u).reshape(image), filters, filter_bias)
          : depthwise_glu(linear_silu(u, up.matrix(), up.bias).reshape(image), filters, filter_bias);
  const Tensor r = point_conv.conv(gated).reshape({B, T, S, -1});
  if (tail) *tail = r.select(1, T - 1).clone();
  return temporal_conv3(r, t_conv.weight, left, /*residual=*/true);
}

}  // namespace rivulet
