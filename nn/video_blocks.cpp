#include "nn/video_blocks.h"

#include "ops/elementwise.h"
#include "ops/pixel_norm.h"
#include "ops/reduce.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

int64_t cells_of(const BlockSize& b) { return b[0] * b[1] * b[2]; }

void check_stride(const BlockSize& stride) {
  for (int64_t s : stride) check(s == 1 || s == 2, "sampler: stride ", s, ", must be 1 or 2");
}

}  // namespace

Tensor ResBlock::operator()(const Tensor& x, TimePass& pass) const {
  const Tensor h = conv1(pixel_norm_silu(x), pass);
  return x + conv2(pixel_norm_silu(h), pass);
}

Downsampler::Downsampler(int64_t in, int64_t out, const BlockSize& stride, Border border, Device device)
    : stride(stride), out(out), conv(in, out / cells_of(stride), border, device) {
  check_stride(stride);
  const int64_t cells = cells_of(stride);
  check(out % cells == 0 && in * cells % out == 0, "downsampler: ", in, " channels cannot become ", out,
        " by blocks of ", cells);
}

Tensor Downsampler::operator()(const Tensor& x, TimePass& pass) const {
  Tensor in = x;
  if (stride[0] == 2) {
    LayerState& state = pass.slot();
    if (!state.started) {
      in = cat({x.slice(1, 0, 1), x}, 1);
    } else if (state.pending) {
      in = cat({state.pending, x}, 1);
    }
    state.started = true;
    const int64_t whole = in.dim(1) / 2 * 2;
    check(pass.streams() || whole == in.dim(1), "downsampler: a clip of ", x.dim(1),
          " frames at this level, must be odd");
    state.pending = whole < in.dim(1) ? in.slice(1, whole, whole + 1).detach().clone() : Tensor();
    if (whole == 0) return {};
    in = in.slice(1, 0, whole);
  }
  const Tensor main = space_to_depth(conv(in, pass), stride);
  Tensor skip = space_to_depth(in, stride);
  const int64_t group = skip.dim(4) / out;
  if (group > 1)
    skip = mean(skip.reshape({skip.dim(0), skip.dim(1), skip.dim(2), skip.dim(3), out, group}), {5});
  return main + skip;
}

Upsampler::Upsampler(int64_t in, int64_t out, const BlockSize& stride, Border border, Device device)
    : stride(stride), out(out), conv(in, out * cells_of(stride), border, device) {
  check_stride(stride);
  const int64_t cells = cells_of(stride);
  check(in % cells == 0 && out * cells % in == 0, "upsampler: ", in, " channels cannot become ", out,
        " by blocks of ", cells);
}

Tensor Upsampler::operator()(const Tensor& x, TimePass& pass) const {
  int64_t left_out = 0;
  if (stride[0] == 2) {
    LayerState& state = pass.slot();
    left_out = state.started ? 0 : 1;
    state.started = true;
  }
  Tensor main = depth_to_space(conv(x, pass), stride), skip = depth_to_space(x, stride);
  if (left_out > 0) {
    main = main.slice(1, left_out, main.dim(1));
    skip = skip.slice(1, left_out, skip.dim(1));
  }
  const int64_t c = skip.dim(4);
  const Shape shape{main.dim(0), main.dim(1), main.dim(2), main.dim(3), out / c, c};
  return (main.reshape(shape) + skip.unsqueeze(4)).reshape(main.shape());
}

}  // namespace rivulet
