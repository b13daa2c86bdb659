#include "ops/temporal_conv.h"

#include <cmath>

#include "ops/gemm.h"
#include "ops/half.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {
namespace {

constexpr int64_t kRowTile = 128, kChannelTile = 64;

// Frame t of batch entry b of x [B, T, S, C]; the left context for t = -1; null where there is nothing.
template <class T>
T* frame(const Tensor& x, const Tensor& left, int64_t b, int64_t t) {
  const int64_t size = x.dim(2) * x.dim(3);
  if (t >= 0 && t < x.dim(1)) return x.data<T>() + (b * x.dim(1) + t) * size;
  return t == -1 && left ? left.data<T>() + b * size : nullptr;
}

// out [rows, to] = sum over k of sources[k] [rows, from] W_k', or W_k when `transposed`. Null sources count
// as zero.
template <class T>
void mix(const T* const* sources, int64_t rows, const Tensor& taps, bool transposed, T* out) {
  const int64_t co = taps.dim(1), c = taps.dim(2), from = transposed ? co : c, to = transposed ? c : co;
  T keep = 0;
  for (int k = 0; k < 3; ++k) {
    if (sources[k] == nullptr) continue;
    gemm<T>(false, !transposed, rows, to, from, T(1), sources[k], from, taps.data<T>() + k * co * c, c, keep,
            out, to, false);
    keep = 1;
  }
}

// f(frame index, first row, rows) over tiles of `frames` frames of s rows.
template <class F>
void for_each_tile(int64_t frames, int64_t s, F&& f) {
  const int64_t tiles = (s + kRowTile - 1) / kRowTile;
  parallel_for(frames * tiles, 1, [&](int64_t i, int64_t) {
    const int64_t row = i % tiles * kRowTile;
    f(i / tiles, row, std::min(kRowTile, s - row));
  });
}

}  // namespace

void temporal_conv3(const Tensor& r, const Tensor& taps, const Tensor& left, bool residual, Tensor& y) {
  dispatch_real(r.dtype(), "temporal_conv3", [&]<class T>() {
    const int64_t frames = r.dim(1), s = r.dim(2), c = r.dim(3), co = taps.dim(1);
    // Each tap is one product over all the frames that have the neighbour it reads.
    const auto add_tap = [&](int k, const T* from, int64_t count, T keep, T* to) {
      if (from == nullptr || count == 0) return;
      gemm<T>(false, true, count * s, co, c, T(1), from, c, taps.data<T>() + k * co * c, c, keep, to, co);
    };
    if (residual) y.copy_from(r);
    for (int64_t b = 0; b < r.dim(0); ++b) {
      const T* x = frame<T>(r, left, b, 0);
      T* out = frame<T>(y, Tensor(), b, 0);
      add_tap(1, x, frames, T(residual), out);
      add_tap(0, frame<T>(r, left, b, -1), 1, T(1), out);
      add_tap(0, x, frames - 1, T(1), out + s * co);
      add_tap(2, x + s * c, frames - 1, T(1), out);
    }
  });
}

void temporal_conv3_backward(const Tensor& dy, const Tensor& r, const Tensor& taps, const Tensor& left,
                             bool residual, Tensor& dr, Tensor& dtaps, Tensor& dleft) {
  dispatch_real(r.dtype(), "temporal_conv3", [&]<class T>() {
    const int64_t batch = r.dim(0), frames = r.dim(1), s = r.dim(2), c = r.dim(3), co = taps.dim(1);
    // Frame -1 is the left context, when its gradient is wanted.
    const int64_t extra = dleft ? 1 : 0;
    for_each_tile(batch * (frames + extra), s, [&](int64_t i, int64_t row, int64_t rows) {
      const int64_t b = i / (frames + extra), t = i % (frames + extra) - extra;
      const T* sources[3];
      for (int k = 0; k < 3; ++k) {
        const T* g = frame<T>(dy, Tensor(), b, t + 1 - k);
        sources[k] = g ? g + row * co : nullptr;
      }
      mix(sources, rows, taps, true, frame<T>(dr, dleft, b, t) + row * c);
    });
    if (residual) dr.add_in_place(dy);
    const int64_t blocks = (co + kChannelTile - 1) / kChannelTile;
    parallel_for(3 * blocks, 1, [&](int64_t i, int64_t) {
      const int64_t k = i / blocks, first = i % blocks * kChannelTile, n = std::min(kChannelTile, co - first);
      T* out = dtaps.data<T>() + (k * co + first) * c;
      std::fill_n(out, n * c, T(0));
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t t = 0; t < frames; ++t) {
          const T* x = frame<T>(r, left, b, t + k - 1);
          if (x == nullptr) continue;
          gemm<T>(true, false, n, c, s, T(1), frame<T>(dy, Tensor(), b, t) + first, co, x, c, T(1), out, c,
                  false);
        }
    });
  });
}

}  // namespace cpu

Tensor temporal_conv3(const Tensor& r, const Tensor& w, const Tensor& left_context, bool residual) {
  check(r.dims() == 4 && r.numel() > 0, "temporal_conv3: r has shape ", r.shape(), ", wanted [B, T, S, C]");
  const int64_t c = r.dim(3);
  check(w.dims() == 4 && w.shape() == Shape{w.dim(0), c, 3, 1}, "temporal_conv3: w has shape ", w.shape(),
        ", r ", r.shape());
  check(!left_context || left_context.shape() == Shape{r.dim(0), r.dim(2), c},
        "temporal_conv3: left_context has shape ", left_context.shape(), ", r ", r.shape());
  check(!residual || w.dim(0) == c, "temporal_conv3: a residual needs as many channels out as in, w has shape ",
        w.shape());
  if (needs_f32({r, w, left_context}))
    return through_f32({r, w, left_context},
                       [residual](const Tensors& t) { return temporal_conv3(t[0], t[1], t[2], residual); });
  check_same_type("temporal_conv3", {r, w, left_context});

  const Tensor in = r.contiguous(), left = left_context ? left_context.contiguous() : left_context;
  const Tensor taps = w.select(3, 0).permute({2, 0, 1}).contiguous();
  Tensor y({r.dim(0), r.dim(1), r.dim(2), w.dim(0)}, r.dtype(), r.device());
  ON_DEVICE(r, temporal_conv3(in, taps, left, residual, y));
  Tensors inputs = {in, taps};
  if (left) inputs.push_back(left);
  return record("temporal_conv3", y, inputs,
                [residual, r = in.detach(), taps = taps.detach(), left = left.detach()](const Tensor& dy) -> Tensors {
                  Tensor dr = empty_like(r), dtaps = empty_like(taps), dleft = left ? empty_like(left) : left;
                  const Tensor g = dy.contiguous();
                  ON_DEVICE(r, temporal_conv3_backward(g, r, taps, left, residual, dr, dtaps, dleft));
                  return left ? Tensors{dr, dtaps, dleft} : Tensors{dr, dtaps};
                });
}

const OpCase& temporal_conv3_case() {
  static const OpCase kCase = {
      .name = "temporal_conv3",
      .run = [](const Tensors& in) -> Tensors {
        return {temporal_conv3(in[0], in[1], in.size() > 2 ? in[2] : Tensor())};
      },
      .check = {{{2, 3, 3, 5}, {7, 5, 3, 1}, {2, 3, 5}},
                {{1, 1, 1, 1}, {1, 1, 3, 1}, {1, 1, 1}},
                {{1, 2, 4, 3}, {2, 3, 3, 1}},
                {{1, 1, 9, 1}, {1, 1, 3, 1}, {1, 9, 1}}},
      .bench = {{{1, 3, 576, 128}, {128, 128, 3, 1}, {1, 576, 128}},
                {{1, 3, 880, 2240}, {2240, 2240, 3, 1}, {1, 880, 2240}}},
      .bytes =
          [](const Shapes& s) {
            return bytes_of(s) + bytes_of({{s[0][0], s[0][1], s[0][2], s[1][0]}});
          },
      // Every frame has an own and a left tap, all but the last a right one.
      .flops =
          [](const Shapes& s) {
            const double left = s.size() > 2 ? 1 : 0,
                         pairs = double(s[0][1]) + 2 * double(s[0][1] - 1) + left;
            return 2 * pairs * double(s[0][0] * s[0][2] * s[0][3] * s[1][0]);
          },
      .fill =
          [](const Shape& shape, int i, Rng& rng, DType dtype) {
            Tensor x = zeros(shape, dtype);
            return x.add_in_place(randn(shape, rng, dtype),
                                  i == 1 ? 1 / std::sqrt(3.0 * double(shape[1])) : 1.0);
          },
  };
  return kCase;
}

const OpCase& temporal_conv3_residual_case() {
  static const OpCase kCase = [] {
    OpCase c = temporal_conv3_case();
    c.name = "temporal_conv3_residual";
    c.run = [](const Tensors& in) -> Tensors {
      return {temporal_conv3(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), true)};
    };
    c.check = {{{2, 3, 3, 5}, {5, 5, 3, 1}, {2, 3, 5}}, {{1, 1, 4, 2}, {2, 2, 3, 1}}};
    return c;
  }();
  return kCase;
}

}  // namespace rivulet
