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

Tensor GluMbConv::operator()(const Tensor& u, const Grid& grid, const Tensor& left, Tensor* tail,
                             const BlockPrecision* precision) const {
  const int64_t B = u.dim(0), T = u.dim(1), S = u.dim(2);
  const Linear& up = inverted_conv.conv;
  const Tensor &filters = depth_conv.conv.weight, &filter_bias = depth_conv.conv.bias;
  const Shape image{B * T, grid.H, grid.W, -1};
  SharedInput in(precision, u);
  // The GPU activates what it loads, the CPU what a product leaves in its cache.
  const bool activate_late =
      u.device() == Device::cuda || (precision && (!precision->at(Layer::ffn_in).plain() || precision->hook));
  const Tensor gated =
      activate_late
          ? silu_depthwise_glu(linear_as(in, Layer::ffn_in, up).reshape(image), filters, filter_bias)
          : depthwise_glu(linear_silu(u, up.matrix(), up.bias).reshape(image), filters, filter_bias);
  SharedInput narrow(precision, gated);
  const Tensor r = linear_as(narrow, Layer::ffn_out, point_conv.conv).reshape({B, T, S, -1});
  if (tail) *tail = r.select(1, T - 1).clone();
  return hooked(precision, Layer::ffn_t, [&](const BlockPrecision* p) { return across_time(r, left, p); });
}

// r + conv(r): what is added is not rounded.
Tensor GluMbConv::across_time(const Tensor& r, const Tensor& left, const BlockPrecision* precision) const {
  if (!precision || precision->at(Layer::ffn_t).plain())
    return temporal_conv3(r, t_conv.weight, left, /*residual=*/true);
  const auto rounded = [&](const Tensor& x) { return x ? activation_as(precision, Layer::ffn_t, x) : x; };
  // Groups of a weight run along its input channels, so the taps go in front.
  const RoundedWeight w = weight_as(precision, Layer::ffn_t, t_conv.weight.squeeze(3).permute({2, 0, 1}));
  const auto released = [](const Tensor& taps) { return taps.permute({1, 2, 0}).unsqueeze(3); };
  Tensor y = r + temporal_conv3(rounded(r), released(w.matrix), rounded(left));
  if (!w.up) return y;
  const Tensor wide = released(w.up.reshape({3, y.dim(3), w.up.dim(1)}));
  return y + temporal_conv3(linear(r, w.down), wide, left ? linear(left, w.down) : left);
}

}  // namespace rivulet
