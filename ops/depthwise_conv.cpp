#include "ops/depthwise_conv.h"

#include "ops/depthwise.h"
#include "ops/half.h"
#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {

void depthwise_conv3x3(const Tensor& x, const Tensor& taps, const Tensor& bias, bool transposed, Tensor& y) {
  dispatch_real(x.dtype(), "depthwise_conv3x3", [&]<class T>() {
    const int64_t height = x.dim(1), width = x.dim(2), c = x.dim(3);
    const std::vector<T> zero(c, T(0));
    const T* add = bias ? bias.data<T>() : zero.data();
    const T* w[9];
    for (int u = 0; u < 9; ++u) w[u] = taps.data<T>() + (transposed ? 8 - u : u) * c;
    parallel_for(x.dim(0) * height, 1, [&](int64_t row, int64_t) {
      const T* image = x.data<T>() + row / height * height * width * c;
      for (int64_t i = 0; i < width; ++i) {
        const T* p[9];
        neighbours(image, height, width, c, row % height, i, zero.data(), p);
        convolve(p, w, add, c, y.data<T>() + (row * width + i) * c);
      }
    });
  });
}

void depthwise_conv3x3_tap_grad(const Tensor& dy, const Tensor& x, Tensor& dtaps) {
  dispatch_real(x.dtype(), "depthwise_conv3x3", [&]<class T>() {
    const int64_t height = x.dim(1), width = x.dim(2), c = x.dim(3), rows = x.dim(0) * height;
    // A fixed number of partial sums, added up in order, keeps the result free of the thread count.
    const int64_t pieces = std::min<int64_t>(rows, 16), grain = (rows + pieces - 1) / pieces;
    const std::vector<T> zero(c, T(0));
    const Tensor parts = zeros({pieces, 9, c}, x.dtype());
    parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
      T* sum = parts.data<T>() + begin / grain * 9 * c;
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < width; ++i) {
          const T* p[9];
          neighbours(x.data<T>() + row / height * height * width * c, height, width, c, row % height, i,
                     zero.data(), p);
          const T* g = dy.data<T>() + (row * width + i) * c;
          for (int u = 0; u < 9; ++u)
#pragma omp simd
            for (int64_t j = 0; j < c; ++j) sum[u * c + j] += g[j] * p[u][j];
        }
    });
    dtaps.copy_from(sum_to(parts, {1, 9, c}).select(0, 0));
  });
}

}  // namespace cpu

namespace {
void check_inputs(const Tensor& x, const Tensor& w, const Tensor& bias) {
  check(x.dims() == 4 && x.numel() > 0, "depthwise_conv3x3: x has shape ", x.shape(),
        ", wanted [B, H, W, C]");
  const int64_t c = x.dim(3);
  check(w.shape() == Shape{c, 1, 3, 3}, "depthwise_conv3x3: w has shape ", w.shape(), ", x ", x.shape());
  check(bias.shape() == Shape{c}, "depthwise_conv3x3: bias has shape ", bias.shape(), ", x ", x.shape());
  if (!needs_f32({x, w, bias})) check_same_type("depthwise_conv3x3", {x, w, bias});
}
}  // namespace

Tensor depthwise_conv3x3(const Tensor& x, const Tensor& w, const Tensor& bias) {
  check_inputs(x, w, bias);
  if (needs_f32({x, w, bias}))
    return through_f32({x, w, bias}, [](const Tensors& t) { return depthwise_conv3x3(t[0], t[1], t[2]); });

  const Tensor in = x.contiguous(), add = bias.contiguous();
  const Tensor taps = w.reshape({x.dim(3), 9}).transpose(0, 1).contiguous();
  Tensor y = empty_like(in);
  ON_DEVICE(x, depthwise_conv3x3(in, taps, add, false, y));
  return record("depthwise_conv3x3", y, {in, taps, add},
                [x = in.detach(), taps = taps.detach()](const Tensor& dy) -> Tensors {
                  Tensor dx = empty_like(x), dtaps = empty_like(taps);
                  const Tensor g = dy.contiguous();
                  ON_DEVICE(x, depthwise_conv3x3(g, taps, Tensor(), true, dx));
                  ON_DEVICE(x, depthwise_conv3x3_tap_grad(g, x, dtaps));
                  return {dx, dtaps, sum_to(g, {g.dim(3)})};
                });
}

const OpCase& depthwise_conv3x3_case() {
  static const OpCase kCase = {
      .name = "depthwise_conv3x3",
      .run = [](const Tensors& in) -> Tensors { return {depthwise_conv3x3(in[0], in[1], in[2])}; },
      .check = {{{2, 4, 3, 5}, {5, 1, 3, 3}, {5}},
                {{1, 1, 1, 1}, {1, 1, 3, 3}, {1}},
                {{1, 5, 1, 9}, {9, 1, 3, 3}, {9}}},
      .bench = {{{3, 18, 32, 768}, {768, 1, 3, 3}, {768}}, {{3, 22, 40, 13440}, {13440, 1, 3, 3}, {13440}}},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops = [](const Shapes& s) { return 18.0 * s[0].numel(); },
  };
  return kCase;
}

}  // namespace rivulet
