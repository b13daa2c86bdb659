#include "ops/conv.h"

#include <cmath>

#include "ops/gemm.h"
#include "ops/half.h"
#include "ops/rows.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {
namespace {

// Output positions per tile, and about how many columns of patches are gathered at a time: the patches of
// a tile stay in the second-level cache.
constexpr int64_t kRowTile = 128, kColumns = 2048;

// Gathers patches of x [B, T, H, W, C] as rows of a matrix. A patch is cut into runs: the kw * C values of
// one (kt, kh) tap row.
template <class T>
struct Patches {
  const T* x;
  const ConvGeometry& g;
  std::array<int64_t, 3> in, out, k;
  int64_t c, run;
  std::vector<const T*> left;

  Patches(const Tensor& x_, const ConvGeometry& geometry, const Shape& y, std::array<int64_t, 3> kernel)
      : x(x_.data<T>()),
        g(geometry),
        in{x_.dim(1), x_.dim(2), x_.dim(3)},
        out{y[1], y[2], y[3]},
        k(kernel),
        c(x_.dim(4)),
        run(k[2] * c) {
    for (const Tensor& frame : geometry.left) left.push_back(frame.data<T>());
  }

  int64_t tap_rows() const { return k[0] * k[1]; }

  // Where tap u of output position o reads along `dim`; -1 for a zero.
  int64_t source(int dim, int64_t o, int64_t u) const {
    int64_t i = o * g.stride[dim] + u - g.before[dim];
    if (g.transposed) {
      i = o + g.before[dim] - u;
      if (i % g.stride[dim] != 0) return -1;
      i /= g.stride[dim];
    }
    if (i >= 0 && i < in[dim]) return i;
    if (g.border[dim] == Border::reflect) return i < 0 ? -i : 2 * (in[dim] - 1) - i;
    if (g.border[dim] == Border::replicate) return i < 0 ? 0 : in[dim] - 1;
    return -1;
  }
  // The frame that tap u of output frame o of batch entry b reads; null for zeros.
  const T* frame(int64_t b, int64_t o, int64_t u) const {
    const int64_t size = in[1] * in[2] * c, i = o * g.stride[0] + u;
    if (!left.empty() && i < g.before[0]) return left[size_t(i)] + b * size;
    const int64_t t = source(0, o, u);
    return t < 0 ? nullptr : x + (b * in[0] + t) * size;
  }

  // One run, at output column `ox`, of the input row at `line`.
  void gather_run(const T* line, int64_t ox, T* to) const {
    const int64_t first = ox * g.stride[2] - g.before[2];
    if (!g.transposed && first >= 0 && first + k[2] <= in[2]) {
      std::copy_n(line + first * c, run, to);
      return;
    }
    for (int64_t u = 0; u < k[2]; ++u, to += c) {
      const int64_t i = source(2, ox, u);
      if (i < 0)
        std::fill_n(to, c, T(0));
      else
        std::copy_n(line + i * c, c, to);
    }
  }

  // Tap rows begin .. end of the patches of output positions o .. o + n, as n dense rows.
  void gather(int64_t o, int64_t n, int64_t begin, int64_t end, T* to) const {
    for (int64_t i = o; i < o + n; ++i) {
      const int64_t ox = i % out[2], oy = i / out[2] % out[1], ot = i / out[2] / out[1] % out[0];
      const int64_t b = i / out[2] / out[1] / out[0];
      for (int64_t tap = begin; tap < end; ++tap, to += run) {
        const T* const image = frame(b, ot, tap / k[1]);
        const int64_t y = source(1, oy, tap % k[1]);
        if (image == nullptr || y < 0)
          std::fill_n(to, run, T(0));
        else
          gather_run(image + y * in[2] * c, ox, to);
      }
    }
  }
};

}  // namespace

void conv3d(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvGeometry& geometry, Tensor& y) {
  dispatch_real(x.dtype(), "conv", [&]<class T>() {
    const Patches<T> patches(x, geometry, y.shape(), {w.dim(1), w.dim(2), w.dim(3)});
    const int64_t co = w.dim(0), taps = patches.tap_rows(), columns = taps * patches.run;
    const int64_t group = std::clamp<int64_t>(kColumns / patches.run, 1, taps);
    parallel_for(y.numel() / co, kRowTile, [&](int64_t begin, int64_t end) {
      const auto tile = scratch<T>(kRowTile * group * patches.run);
      T* out = y.data<T>() + begin * co;
      for (int64_t tap = 0; tap < taps; tap += group) {
        const int64_t tap_end = std::min(taps, tap + group), width = (tap_end - tap) * patches.run;
        patches.gather(begin, end - begin, tap, tap_end, tile.get());
        gemm<T>(false, true, end - begin, co, width, T(1), tile.get(), width, w.data<T>() + tap * patches.run,
                columns, tap == 0 ? T(0) : T(1), out, co, false);
      }
      if (!bias) return;
      const T* add = bias.data<T>();
      for (int64_t i = 0; i < end - begin; ++i)
        for (int64_t j = 0; j < co; ++j) out[i * co + j] += add[j];
    });
  });
}

void conv3d_weight_grad(const Tensor& dy, const Tensor& x, const ConvGeometry& geometry, Tensor& dw) {
  dispatch_real(x.dtype(), "conv", [&]<class T>() {
    const Patches<T> patches(x, geometry, dy.shape(), {dw.dim(1), dw.dim(2), dw.dim(3)});
    const int64_t co = dw.dim(0), run = patches.run, taps = patches.tap_rows(), columns = taps * run;
    const int64_t rows = dy.numel() / co, tiles = (rows + kRowTile - 1) / kRowTile;
    // Each task owns one tap row. Few tap rows: the positions are cut into parts as well, whose sums are
    // added up in order.
    const int64_t parts = std::clamp<int64_t>(8 / taps, 1, tiles),
                  tiles_per_part = (tiles + parts - 1) / parts;
    const Tensor sums = zeros({parts, co, columns}, x.dtype());
    parallel_for(taps * parts, 1, [&](int64_t task, int64_t) {
      const int64_t tap = task % taps, part = task / taps;
      const auto tile = scratch<T>(kRowTile * run);
      T* out = sums.data<T>() + part * co * columns + tap * run;
      const int64_t last = std::min(rows, (part + 1) * tiles_per_part * kRowTile);
      for (int64_t o = part * tiles_per_part * kRowTile; o < last; o += kRowTile) {
        const int64_t n = std::min(kRowTile, last - o);
        patches.gather(o, n, tap, tap + 1, tile.get());
        gemm<T>(true, false, co, run, n, T(1), dy.data<T>() + o * co, co, tile.get(), run, T(1), out, columns,
                false);
      }
    });
    dw.reshape({1, co, columns}).copy_from(sum_to(sums, {1, co, columns}));
  });
}

}  // namespace cpu

namespace {

// Gradients along a dim that was continued by `before` and `after` elements: those of the border are added to
// the elements it read. Works in place on g, which keeps its size.
void fold_border(const Tensor& g, int dim, Border border, int64_t before, int64_t after) {
  const int64_t last = g.dim(dim) - after - 1;
  const auto add = [&](int64_t to, int64_t from) {
    g.slice(dim, to, to + 1).add_in_place(g.slice(dim, from, from + 1));
  };
  for (int64_t j = 1; j <= before; ++j) add(border == Border::reflect ? before + j : before, before - j);
  for (int64_t j = 1; j <= after; ++j) add(border == Border::reflect ? last - j : last, last + j);
}

// dx, and after it the gradients of the frames on the left.
Tensors conv_input_grad(const Tensor& dy, const Tensor& w, const Shape& x, const ConvGeometry& g) {
  ConvGeometry back{g.stride, g.before, true};
  Shape shape = x, after = x;  // of the continued x, where its border is not zeros
  for (int i = 0; i < 3; ++i) {
    const int64_t reach = (dy.dim(i + 1) - 1) * g.stride[i] + w.dim(i + 1) - g.before[i] - x[i + 1];
    after[i + 1] = 0;
    if (g.border[i] == Border::zeros && (i > 0 || g.left.empty())) continue;
    if (g.border[i] != Border::zeros) after[i + 1] = std::max<int64_t>(0, reach);
    back.before[i] = 0;
    shape[i + 1] += g.before[i] + after[i + 1];
  }
  Tensor dx(shape, dy.dtype(), dy.device());
  const Tensor turned = w.permute({4, 1, 2, 3, 0}).contiguous();
  ON_DEVICE(dy, conv3d(dy, turned, Tensor(), back, dx));
  Tensors grads = {dx};
  for (int i = 2; i >= 0; --i) {
    const int64_t before = shape[i + 1] - x[i + 1] - after[i + 1];
    const bool carried = i == 0 && !g.left.empty();
    if (carried)
      for (int64_t j = 0; j < before; ++j) grads.push_back(grads[0].select(1, j).contiguous());
    if (g.border[i] != Border::zeros)
      fold_border(grads[0], i + 1, g.border[i], carried ? 0 : before, after[i + 1]);
    grads[0] = grads[0].slice(i + 1, before, before + x[i + 1]);
  }
  grads[0] = grads[0].contiguous();
  return grads;
}

void check_left(const Tensor& x, const ConvSteps<3>& steps, const Tensors& left) {
  if (left.empty()) return;
  check(int64_t(left.size()) == steps.before[0] && steps.before[0] <= kMostLeftFrames, "conv: ", left.size(),
        " frames on the left, ", steps.before[0], " before the first one (at most ", kMostLeftFrames, ")");
  for (const Tensor& frame : left)
    check(frame.shape() == Shape{x.dim(0), x.dim(2), x.dim(3), x.dim(4)},
          "conv: a frame on the left has shape ", frame.shape(), ", x ", x.shape());
}

// The shape of y; throws where x, w and steps do not fit.
Shape conv_shape(const Tensor& x, const Tensor& w, const ConvSteps<3>& steps) {
  Shape shape{x.dim(0), 0, 0, 0, w.dim(0)};
  for (int i = 0; i < 3; ++i) {
    const int64_t n = x.dim(i + 1), before = steps.before[i], after = steps.after[i];
    check(steps.stride[i] >= 1 && before >= 0 && after >= 0, "conv: stride ", steps.stride[i], ", padding ",
          before, " and ", after);
    check(steps.border[i] != Border::reflect || std::max(before, after) < n, "conv: x ", x.shape(),
          " is too small to be mirrored by ", before, " and ", after, " elements");
    const int64_t room = n + before + after - w.dim(i + 2);
    check(room >= 0, "conv: x ", x.shape(), " with its padding is smaller than the kernel ", w.shape());
    shape[i + 1] = room / steps.stride[i] + 1;
  }
  return shape;
}

// Whether the GPU convolves these in bf16, in all directions that gradients take.
bool on_tensor_cores([[maybe_unused]] const Tensors& all, [[maybe_unused]] const ConvSteps<3>& steps,
                     [[maybe_unused]] const Shape& y) {
  if constexpr (kHasCuda) {
    for (const Tensor& t : all)
      if (t && (t.dtype() != DType::bf16 || t.device() != Device::cuda)) return false;
    const Shape &x = all[0].shape(), &w = all[1].shape();
    const std::array<int64_t, 3> padded{x[1] + steps.before[0] + steps.after[0], 1, 1};
    return cuda::has_conv3d_bf16(x, w, steps.stride, {y[1], y[2], y[3]}) &&
           cuda::has_conv3d_bf16(y, {w[1], w[0], w[2], w[3], w[4]}, steps.stride, padded);
  }
  return false;
}

}  // namespace

Tensor conv3d(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvSteps<3>& steps,
              const Tensors& left) {
  check(x.dims() == 5 && w.dims() == 5 && x.numel() > 0 && w.numel() > 0 && x.dim(4) == w.dim(1),
        "conv: x has shape ", x.shape(), ", w ", w.shape(), ", wanted channels last and [Co, C, taps]");
  check(!bias || bias.shape() == Shape{w.dim(0)}, "conv: bias has shape ", bias.shape(), ", w ", w.shape());
  check_left(x, steps, left);
  const Shape shape = conv_shape(x, w, steps);
  Tensors all = {x, w, bias};
  all.insert(all.end(), left.begin(), left.end());
  if (any_half(all) && !on_tensor_cores(all, steps, shape))
    return through_f32(all, [&](const Tensors& t) {
      return conv3d(t[0], t[1], t[2], steps, Tensors(t.begin() + 3, t.end()));
    });
  check_same_type("conv", all);

  const Tensor in = x.contiguous(), packed = w.permute({0, 2, 3, 4, 1}).contiguous();
  const Tensor add = bias ? bias.contiguous() : bias;
  Tensors inputs = {in, packed};
  if (add) inputs.push_back(add);
  ConvGeometry geometry{steps.stride, steps.before, false, steps.border};
  for (const Tensor& frame : left) {
    inputs.push_back(frame.contiguous());
    geometry.left.push_back(inputs.back().detach());
  }
  Tensor y(shape, x.dtype(), x.device());
  ON_DEVICE(x, conv3d(in, packed, add, geometry, y));
  return record("conv", y, inputs,
                [x = in.detach(), w = packed.detach(), geometry,
                 with_bias = add.defined()](const Tensor& dy) -> Tensors {
                  const Tensor g = dy.contiguous();
                  Tensor dw = empty_like(w);
                  ON_DEVICE(x, conv3d_weight_grad(g, x, geometry, dw));
                  const Tensors dxs = conv_input_grad(g, w, x.shape(), geometry);
                  Tensors grads = {dxs[0], dw};
                  if (with_bias) grads.push_back(sum_to(g, {g.dim(4)}));
                  grads.insert(grads.end(), dxs.begin() + 1, dxs.end());
                  return grads;
                });
}

Tensor channels_last_weight(const Shape& s, Device device, DType dtype) {
  check(s.size() == 5, "channels_last_weight: shape ", s, ", wanted [Co, C, kt, kh, kw]");
  return Tensor({s[0], s[2], s[3], s[4], s[1]}, dtype, device).permute({0, 4, 1, 2, 3});
}

Tensor conv2d(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvSteps<2>& steps) {
  check(x.dims() == 4 && w.dims() == 4, "conv: x has shape ", x.shape(), ", w ", w.shape(),
        ", wanted [B, H, W, C] and [Co, C, kh, kw]");
  ConvSteps<3> with_time;
  for (int i = 0; i < 2; ++i) {
    with_time.stride[i + 1] = steps.stride[i];
    with_time.before[i + 1] = steps.before[i];
    with_time.after[i + 1] = steps.after[i];
    with_time.border[i + 1] = steps.border[i];
  }
  return conv3d(x.unsqueeze(1), w.unsqueeze(2), bias, with_time).squeeze(1);
}

namespace {

// Weights of variance 1 / (inputs per output), everything else N(0, 1).
Tensor fill_conv(const Shape& shape, int i, Rng& rng, DType dtype) {
  Tensor x = zeros(shape, dtype);
  return x.add_in_place(randn(shape, rng, dtype),
                        i == 1 ? std::sqrt(double(shape[0]) / double(shape.numel())) : 1.0);
}

double conv_flops(const Shapes& s, int64_t positions) {
  return 2.0 * double(positions) * double(s[1].numel());
}

// Of a 3-D convolution whose result is as large as its input.
double same_size_bytes(const Shapes& s) {
  return bytes_of(s) + bytes_of({{s[0][0], s[0][1], s[0][2], s[0][3], s[1][0]}});
}

double same_size_flops(const Shapes& s) { return conv_flops(s, s[0][0] * s[0][1] * s[0][2] * s[0][3]); }

}  // namespace

const OpCase& conv2d_case() {
  // Odd heights run with stride 2; padding is half the kernel's height.
  const auto steps = [](const Shapes& s) { return ConvSteps<2>(s[0][1] % 2 ? 2 : 1, s[1][2] / 2); };
  static const OpCase kCase = {
      .name = "conv2d",
      .run = [steps](const Tensors& in) -> Tensors {
        return {
            conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), steps({in[0].shape(), in[1].shape()}))};
      },
      .check = {{{2, 5, 4, 3}, {2, 3, 3, 3}, {2}},
                {{1, 1, 1, 1}, {1, 1, 1, 1}},
                {{1, 4, 3, 2}, {3, 2, 3, 2}, {3}}},
      .bench = {{{3, 18, 32, 128}, {128, 128, 3, 3}, {128}}, {{1, 144, 256, 64}, {64, 64, 3, 3}, {64}}},
      .bytes =
          [](const Shapes& s) {
            return bytes_of(s) + bytes_of({{s[0][0], s[0][1], s[0][2], s[1][0]}});
          },
      .flops = [](const Shapes& s) { return conv_flops(s, s[0][0] * s[0][1] * s[0][2]); },
      .fill = fill_conv,
  };
  return kCase;
}

const OpCase& conv3d_case() {
  // Causal in time; strided by two in space and time when the number of frames is odd.
  const auto steps = [](const Shapes& s) {
    ConvSteps<3> c(s[0][1] % 2 ? 2 : 1, s[1][3] / 2);
    c.before[0] = s[1][2] - 1;
    c.after[0] = 0;
    return c;
  };
  static const OpCase kCase = {
      .name = "conv3d",
      .run = [steps](const Tensors& in) -> Tensors {
        return {
            conv3d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), steps({in[0].shape(), in[1].shape()}))};
      },
      .check = {{{1, 3, 4, 3, 2}, {3, 2, 3, 3, 3}, {3}},
                {{1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}},
                {{2, 2, 3, 4, 2}, {2, 2, 2, 3, 3}, {2}}},
      .bench = {{{1, 4, 18, 32, 128}, {128, 128, 3, 3, 3}, {128}},
                {{1, 8, 72, 128, 32}, {32, 32, 3, 3, 3}, {32}}},
      .bytes = same_size_bytes,
      .flops = same_size_flops,
      .fill = fill_conv,
  };
  return kCase;
}

const OpCase& conv3d_border_case() {
  // Mirrored in space. In time: on the left the frames given after the bias, else the first frame again; on
  // the right the last frame again when the kernel is as wide as it is high.
  const auto steps = [](const Shapes& s) {
    ConvSteps<3> c(1, s[1][3] / 2);
    const bool both_sides = s[1][2] == s[1][3] && s.size() == 3;
    c.before[0] = both_sides ? s[1][2] / 2 : s[1][2] - 1;
    c.after[0] = both_sides ? s[1][2] / 2 : 0;
    c.border = {Border::replicate, Border::reflect, Border::reflect};
    return c;
  };
  static const OpCase kCase = {
      .name = "conv3d_border",
      .run = [steps](const Tensors& in) -> Tensors {
        Shapes shapes;
        for (const Tensor& t : in) shapes.push_back(t.shape());
        return {conv3d(in[0], in[1], in[2], steps(shapes), Tensors(in.begin() + 3, in.end()))};
      },
      .check = {{{1, 2, 3, 4, 2}, {3, 2, 3, 3, 3}, {3}, {1, 3, 4, 2}, {1, 3, 4, 2}},
                {{2, 1, 2, 2, 1}, {1, 1, 3, 3, 3}, {1}},
                {{1, 3, 3, 2, 2}, {2, 2, 2, 3, 3}, {2}},
                {{2, 2, 3, 3, 1}, {2, 1, 2, 3, 3}, {2}, {2, 3, 3, 1}}},
      .bench = {{{1, 4, 18, 32, 128}, {128, 128, 3, 3, 3}, {128}, {1, 18, 32, 128}, {1, 18, 32, 128}}},
      .bytes = same_size_bytes,
      .flops = same_size_flops,
      .fill = fill_conv,
  };
  return kCase;
}

const OpCase& conv3d_channels_case() {
  // As many channels as tensor cores take: causal, with frames on the left or the first one repeated, and in
  // space mirrored where the frames are even in number, repeated where the kernel has one frame, else zeros.
  const auto steps = [](const Shape& x, const Shape& w) {
    ConvSteps<3> c(1, w[3] / 2);
    c.before[0] = w[2] - 1;
    c.after[0] = 0;
    const Border border = x[1] % 2 == 0 ? Border::reflect : w[2] == 1 ? Border::replicate : Border::zeros;
    c.border = {border == Border::zeros ? Border::zeros : Border::replicate, border, border};
    return c;
  };
  static const OpCase kCase = {
      .name = "conv3d_channels",
      .run = [steps](const Tensors& in) -> Tensors {
        return {conv3d(in[0], in[1], in[2], steps(in[0].shape(), in[1].shape()),
                       Tensors(in.begin() + 3, in.end()))};
      },
      .check = {{{1, 3, 3, 5, 8}, {8, 8, 3, 3, 3}, {8}},
                {{2, 2, 4, 3, 8}, {16, 8, 2, 3, 3}, {16}},
                {{1, 1, 5, 4, 16}, {8, 16, 1, 3, 3}, {8}},
                {{1, 2, 3, 4, 8}, {8, 8, 3, 1, 1}, {8}, {1, 3, 4, 8}, {1, 3, 4, 8}}},
      .bench = {{{1, 8, 44, 80, 128}, {128, 128, 3, 3, 3}, {128}, {1, 44, 80, 128}, {1, 44, 80, 128}},
                {{8, 9, 24, 32, 64}, {128, 64, 3, 3, 3}, {128}},
                {{1, 6, 22, 40, 256}, {256, 256, 3, 3, 3}, {256}}},
      .bytes = same_size_bytes,
      .flops = same_size_flops,
      .fill = fill_conv,
  };
  return kCase;
}

}  // namespace rivulet
