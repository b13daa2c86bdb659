// The contents page: every op family, and the one list that the gradient check, the parity test, the
// benchmark and `inspect --ops` read.
#pragma once

#include <span>

#include "ops/attention.h"
#include "ops/case.h"
#include "ops/causal_softmax.h"
#include "ops/conv.h"
#include "ops/depthwise_conv.h"
#include "ops/depthwise_glu.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/gdn.h"
#include "ops/gdn_decay.h"
#include "ops/gdn_fused.h"
#include "ops/glu.h"
#include "ops/image.h"
#include "ops/loss.h"
#include "ops/matmul.h"
#include "ops/mix.h"
#include "ops/modulate.h"
#include "ops/norm.h"
#include "ops/norm_rope.h"
#include "ops/pixel_norm.h"
#include "ops/quantize.h"
#include "ops/quantized_linear.h"
#include "ops/reduce.h"
#include "ops/residual_norm.h"
#include "ops/rope.h"
#include "ops/shape.h"
#include "ops/space_depth.h"
#include "ops/temporal_conv.h"

// One line per family, or per few kinds of one.
// clang-format off
#define RIVULET_OPS(X)                                                                     \
  X(add) X(sub) X(mul) X(div) X(maximum) X(minimum) X(where)                               \
  X(affine) X(reciprocal) X(neg) X(exp) X(log) X(sqrt) X(rsqrt) X(square) X(abs)           \
  X(pow_scalar) X(clamp) X(sigmoid) X(silu) X(relu) X(gelu_tanh) X(softplus) X(tanh)       \
  X(sin) X(cos)                                                                            \
  X(sum) X(mean) X(max) X(softmax) X(logsumexp)                                            \
  X(matmul) X(linear) X(linear_silu) X(linear_add) X(mix)                                  \
  X(rms_norm) X(rms_norm_offset) X(layer_norm)                                             \
  X(modulate) X(layer_norm_modulate) X(gate_residual)                                      \
  X(gate_residual_norm) X(residual_norm) X(rms_norm_rope)                                  \
  X(embedding)                                                                             \
  X(mse_loss) X(masked_mse) X(l1_loss) X(charbonnier)                                      \
  X(cat) X(stack) X(pad) X(split)                                                          \
  X(attention) X(attention_segments) X(attention_masked)                                   \
  X(causal_softmax) X(causal_softmax_capped)                                               \
  X(rope)                                                                                  \
  X(gdn) X(gdn_decay) X(gdn_fused)                                                         \
  X(glu_silu) X(mul_silu)                                                                  \
  X(conv2d) X(conv3d) X(conv3d_border) X(conv3d_channels)                                  \
  X(depth_to_space) X(space_to_depth) X(pixel_norm_silu)                                   \
  X(depthwise_conv3x3) X(depthwise_glu) X(silu_depthwise_glu)                              \
  X(temporal_conv3) X(temporal_conv3_residual)                                             \
  X(resize) X(crop) X(rgb_to_ycbcr) X(ycbcr_to_rgb) X(rgb_to_hsv) X(hsv_to_rgb)            \
  X(u8_to_unit) X(unit_to_u8)
// clang-format on

namespace rivulet {

std::span<const OpCase* const> all_op_cases();

}  // namespace rivulet
