#include "nn/glumbconv.h"

#include "ops/depthwise_conv.h"
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
  const Tensor wide = linear_silu(u, up.matrix(), up.bias).reshape({B * T, grid.H, grid.W, -1});
  const Tensor gated = depthwise_glu(wide, depth_conv.conv.weight, depth_conv.conv.bias);
  const Tensor r = point_conv.conv(gated).reshape({B, T, S, -1});
  if (tail) *tail = r.detach().select(1, T - 1).clone();
  return temporal_conv3(r, t_conv.weight, left, /*residual=*/true);
}

}  // namespace rivulet
