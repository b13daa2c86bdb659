// The feed-forward layer (dit.md 4): 1x1 up, depthwise 3x3, gated, 1x1 down, plus a temporal convolution.
#pragma once

#include "nn/gdn_attention.h"

namespace rivulet {

struct GluMbConv {
  // Released names nest each convolution as "<name>.conv".
  struct Conv {
    Linear conv;
    template <class F>
    void visit(F&& f) {
      f("conv", conv);
    }
  };
  Conv inverted_conv, depth_conv, point_conv;
  NormWeight t_conv;  // weight [C, C, 3, 1]

  GluMbConv() = default;
  GluMbConv(int64_t width, int64_t hidden, Device device);
  template <class F>
  void visit(F&& f) {
    f("inverted_conv", inverted_conv);
    f("depth_conv", depth_conv);
    f("point_conv", point_conv);
    f("t_conv", t_conv);
  }

  // u [B, T, S, C]. `left` is the frame before the first one at the temporal convolution's input,
  // [B, S, C] (undefined: zeros); the last such frame goes to *tail when given, on the tape. Returns
  // [B, T, S, C].
  Tensor operator()(const Tensor& u, const Grid& grid, const Tensor& left, Tensor* tail,
                    const BlockPrecision* precision = nullptr) const;

 private:
  Tensor across_time(const Tensor& r, const Tensor& left, const BlockPrecision* precision) const;
};

}  // namespace rivulet
