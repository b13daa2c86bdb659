#include "nn/causal_conv3d.h"

namespace rivulet {

Tensors last_frames(const Tensors& kept, const Tensor& x, int64_t count) {
  const NoGrad off;
  const int64_t T = x.dim(1);
  const auto own = [&](int64_t t) { return x.detach().select(1, t).clone(); };
  Tensors frames;
  Tensor first;
  for (int64_t t = T - count; t < T; ++t) {
    if (t >= 0) {
      frames.push_back(own(t));
    } else if (!kept.empty()) {
      frames.push_back(kept[size_t(int64_t(kept.size()) + t)]);
    } else {
      if (!first) first = own(0);
      frames.push_back(first);
    }
  }
  return frames;
}

Tensor CausalConv3d::operator()(const Tensor& x, TimePass& pass) const {
  const int64_t reach = weight.dim(2) - 1;
  const Tensor w = weight.to(x.dtype()), b = bias.to(x.dtype());
  ConvSteps<3> steps;
  steps.border = {Border::replicate, border, border};
  for (int i : {1, 2}) steps.before[i] = steps.after[i] = weight.dim(i + 2) / 2;
  if (!pass.causal()) {
    steps.before[0] = steps.after[0] = reach / 2;
    return conv3d(x, w, b, steps);
  }
  steps.before[0] = reach;
  LayerState& state = pass.slot();
  const Tensor y = conv3d(x, w, b, steps, state.frames);
  if (pass.streams()) state.frames = last_frames(state.frames, x, reach);
  return y;
}

}  // namespace rivulet
