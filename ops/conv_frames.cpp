#include "ops/conv_frames.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/pixel_norm.h"
#include "ops/shape.h"

namespace rivulet {

Frames::Frames(const Tensor& store, int64_t rim, Border border) : rim(rim), border(border) {
  stores[0] = store;
  for (int64_t i = 0; i < store.dim(0); ++i) at.push_back(int16_t(i));
}

namespace {

void check_frames(const Frames& f, DType dtype, Device device) {
  for (const Tensor& s : f.stores)
    if (s)
      check(s.dims() == 4 && s.is_contiguous() && s.dtype() == dtype && s.device() == device &&
                Shape({s.dim(1), s.dim(2), s.dim(3)}) == Shape({f.any().dim(1), f.any().dim(2), f.any().dim(3)}),
            "conv_frames: a store of ", s.dtype(), " ", s.shape(), " beside one of ", dtype, " ",
            f.any().shape());
  for (int16_t place : f.at) {
    const Tensor& s = f.stores[place < 0];
    check(place == Frames::kZero || (s && (place < 0 ? -1 - place : place) < s.dim(0)),
          "conv_frames: a frame at place ", place);
  }
  check(f.rim >= 0 && f.rim <= 1 && f.height() > 0 && f.width() > 0, "conv_frames: frames of ", f.height(), "x",
        f.width(), ", rim ", f.rim);
  check(f.rim == 0 || f.border != Border::reflect || std::min(f.height(), f.width()) > 1,
        "conv_frames: frames of ", f.height(), "x", f.width(), " are too small to be mirrored");
}

void check_job(const FramesConv& j) {
  check(bool(j.x) && j.w.dims() == 5 && (j.raw || j.normed), "conv_frames: x, w and an output are needed");
  const Tensor& x = j.x.any();
  for (const Frames* f : {&j.x, &j.raw, &j.normed})
    if (*f) check_frames(*f, x.dtype(), x.device());
  check(j.w.is_contiguous() && j.w.dtype() == x.dtype() && j.w.dim(4) == x.dim(3) && j.w.dim(2) % 2 == 1 &&
            j.w.dim(3) % 2 == 1 && std::max(j.w.dim(2), j.w.dim(3)) <= 3,
        "conv_frames: w has shape ", j.w.shape(), ", x ", x.shape());
  check(j.x.rim == 1 || j.x.border == Border::zeros, "conv_frames: no rim to read the border from");
  const int64_t n = j.w.dim(0), cells = j.block[0] * j.block[1] * j.block[2], frames = j.x.count() - j.w.dim(1) + 1;
  check(frames > 0, "conv_frames: ", j.x.count(), " frames for a kernel of ", j.w.dim(1));
  check(!j.bias || (j.bias.shape() == Shape{n} && j.bias.dtype() == DType::f32), "conv_frames: bias has shape ",
        j.bias.shape(), ", w ", j.w.shape());
  const bool deeper = j.move == FramesConv::Move::to_depth, wider = j.move == FramesConv::Move::to_space;
  check(deeper || wider || cells == 1, "conv_frames: blocks of ", cells, " pixels stay where they are");
  check(!wider || n % cells == 0, "conv_frames: ", n, " channels in blocks of ", cells);
  std::array<int64_t, 3> size{frames, j.x.height(), j.x.width()};
  for (int i = 0; i < 3; ++i) {
    check(!deeper || size[i] % j.block[i] == 0, "conv_frames: ", size[i], " elements in blocks of ", j.block[i]);
    size[i] = deeper ? size[i] / j.block[i] : wider ? size[i] * j.block[i] : size[i];
  }
  size[0] -= j.drop;
  const int64_t c = deeper ? n * cells : wider ? n / cells : n;
  for (const Frames* f : {&j.raw, &j.normed})
    check(!*f || (f->count() == size[0] && f->height() == size[1] && f->width() == size[2] && f->channels() == c),
          "conv_frames: frames of ", f->any().shape(), " do not fit ", size[0], " of ", size[1], "x", size[2], "x",
          c);
  check(!j.add || (j.add.numel() == size[0] * size[1] * size[2] * c && j.add.is_contiguous() &&
                   j.add.dtype() == x.dtype()),
        "conv_frames: add has shape ", j.add ? j.add.shape() : Shape(), ", the output ", size[0], " frames of ",
        size[1], "x", size[2], "x", c);
  if (x.device() == Device::cuda)
    check(x.dtype() == DType::bf16 && n % 8 == 0 && x.dim(3) % 8 == 0 && c % 8 == 0 && n <= 4096 &&
              (!wider || c % 64 == 0),
          "conv_frames: the GPU takes bf16 channels in multiples of 8 (of 64 behind to_space), got ", x.dtype(), ", x ", x.shape(), ", w ",
          j.w.shape());
}

}  // namespace

namespace cpu {
namespace {

Tensor at(const Frames& f, int16_t place) { return f.stores[place < 0].select(0, place < 0 ? -1 - place : place); }

// Inside [T, H, W, C] to the places and their rims.
void write(const Frames& f, const Tensor& inside) {
  const int64_t H = f.height(), W = f.width();
  const auto from = [&](int64_t i, int64_t n) {
    return f.border == Border::reflect ? (i < 0 ? 1 : i >= n ? n - 2 : i) : std::clamp<int64_t>(i, 0, n - 1);
  };
  const int64_t reach = f.border == Border::zeros ? 0 : f.rim;
  for (int64_t t = 0; t < f.count(); ++t) {
    const Tensor to = at(f, f.at[size_t(t)]), frame = inside.select(0, t);
    to.slice(0, f.rim, f.rim + H).slice(1, f.rim, f.rim + W).copy_from(frame);
    for (int64_t y = -reach; y < H + reach; ++y)
      for (int64_t x = -reach; x < W + reach; ++x)
        if (y < 0 || x < 0 || y >= H || x >= W)
          to.select(0, y + f.rim).select(0, x + f.rim).copy_from(frame.select(0, from(y, H)).select(0, from(x, W)));
  }
}

}  // namespace

void conv_frames(const FramesConv& j) {
  const int64_t ring = j.w.dim(2) / 2 - j.x.rim;  // zeros around what is stored
  Tensors frames;
  for (int16_t place : j.x.at)
    frames.push_back(place == Frames::kZero ? zeros(at(j.x, 0).shape(), j.x.any().dtype()) : at(j.x, place));
  ConvSteps<3> steps;
  steps.before[1] = steps.after[1] = ring;
  steps.before[2] = steps.after[2] = j.w.dim(3) / 2 - j.x.rim;
  Tensor y = conv3d(stack(frames, 0).unsqueeze(0), j.w.permute({0, 4, 1, 2, 3}), j.bias, steps);
  const auto [st, sh, sw] = j.block;
  const int64_t T = y.dim(1), H = y.dim(2), W = y.dim(3), N = y.dim(4);
  if (j.move == FramesConv::Move::to_depth)
    y = y.reshape({T / st, st, H / sh, sh, W / sw, sw, N})
            .permute({0, 2, 4, 1, 3, 5, 6})
            .reshape({1, T / st, H / sh, W / sw, N * st * sh * sw});
  if (j.move == FramesConv::Move::to_space)
    y = y.reshape({T, H, W, st, sh, sw, N / (st * sh * sw)})
            .permute({0, 3, 1, 4, 2, 5, 6})
            .reshape({1, T * st, H * sh, W * sw, N / (st * sh * sw)});
  y = y.squeeze(0).slice(0, j.drop, y.dim(1));
  if (j.add) y = y + j.add.reshape(y.shape());
  if (j.raw) write(j.raw, y);
  if (j.normed) write(j.normed, rivulet::pixel_norm_silu(y));
}

void move_frames(const Frames& x, const Frames& to, bool norm) {
  Tensors frames;
  for (int16_t place : x.at)
    frames.push_back(
        at(x, place).slice(0, x.rim, x.rim + x.height()).slice(1, x.rim, x.rim + x.width()));
  const Tensor all = stack(frames, 0);
  write(to, norm ? rivulet::pixel_norm_silu(all) : all);
}

}  // namespace cpu

void conv_frames(const FramesConv& job) {
  const NoGrad off;
  check_job(job);
  ON_DEVICE(job.x.any(), conv_frames(job));
}

namespace {

void move(const Frames& x, const Frames& to, bool norm) {
  const NoGrad off;
  check(bool(x) && bool(to) && x.count() == to.count() && x.height() == to.height() && x.width() == to.width() &&
            x.channels() == to.channels(),
        "frames of different sizes: ", x.count(), " and ", to.count(), " of ", x.any().shape(), " and ",
        to.any().shape());
  for (const Frames* f : {&x, &to}) check_frames(*f, x.any().dtype(), x.any().device());
  if (x.any().device() == Device::cuda)
    check(x.any().dtype() == DType::bf16 && x.channels() % 8 == 0 && x.channels() <= 2048,
          "frames on the GPU have bf16 channels in multiples of 8 up to 2048, got ", x.any().shape());
  ON_DEVICE(x.any(), move_frames(x, to, norm));
}

}  // namespace

void pixel_norm_frames(const Frames& x, const Frames& normed) { move(x, normed, true); }
void copy_frames(const Frames& x, const Frames& to) { move(x, to, false); }

}  // namespace rivulet
