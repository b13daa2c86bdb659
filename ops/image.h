// Pictures and frames, channels last: resizing, cropping, number formats and colour spaces.
//
// resize is linear and separable: out = Wv x Wh' per frame and channel, dx = Wv' dout Wh. Weights are those
// of bilinear interpolation between pixel centres; when shrinking, the triangle is as wide as the step, so
// every input pixel counts (no aliasing). Colour: BT.601, full range, values in [0, 1], chroma around 0.5:
//   Y = 0.299 R + 0.587 G + 0.114 B,   Cb = 0.5 + (B - Y) / 1.772,   Cr = 0.5 + (R - Y) / 1.402.
// Neither saves anything but sizes.
#pragma once

#include <array>

#include "ops/case.h"
#include "tensor/autograd.h"

namespace rivulet {

// x [F, H, W, C], f32 or f64 -> [F, height, width, C].
Tensor resize(const Tensor& x, int64_t height, int64_t width);
// Rows top .. top + height and columns left .. left + width of x [F, H, W, C]: a view, any dtype.
Tensor crop(const Tensor& x, int64_t top, int64_t left, int64_t height, int64_t width);

// u8 0..255 -> f32 in [0, 1], and back (rounded to nearest, clamped; NaN gives 0). Not differentiated.
Tensor u8_to_unit(const Tensor& x);
Tensor unit_to_u8(const Tensor& x);

// x [..., 3], differentiable. The two are each other's inverse; nothing is clamped.
Tensor rgb_to_ycbcr(const Tensor& x);
Tensor ycbcr_to_rgb(const Tensor& x);
// Hue, saturation and value, all in [0, 1] (hue 0 and 1 are both red; grey has hue 0 and saturation 0), and
// back. Forward only: the result carries no gradient.
Tensor rgb_to_hsv(const Tensor& x);
Tensor hsv_to_rgb(const Tensor& x);

// Row o of a resampling matrix: weights for the inputs first[o], first[o] + 1, ...; offset[o] .. offset[o +
// 1] of `weights`. Ranges may be empty.
struct Resampling {
  std::vector<int64_t> first, offset;
  std::vector<double> weights;
};
// The matrix of resize from n to m pixels, or its transpose.
Resampling resampling(int64_t n, int64_t m, bool transposed);

// y = matrix * x + shift over the last dim of 3; matrix row-major.
struct ColorMap {
  std::array<double, 9> matrix;
  std::array<double, 3> shift;
};

// resample: x [outer, n, inner] -> y [outer, m, inner], dense. color_map: dense rows of 3.
KERNELS(void resample(const Tensor& x, const Resampling& matrix, Tensor& y);
        void color_map(const Tensor& x, const ColorMap& map, Tensor& y);
        void u8_to_unit(const Tensor& x, Tensor& y); void unit_to_u8(const Tensor& x, Tensor& y);
        void rgb_to_hsv(const Tensor& x, Tensor& y); void hsv_to_rgb(const Tensor& x, Tensor& y);)

const OpCase& resize_case();
const OpCase& crop_case();
const OpCase& rgb_to_ycbcr_case();
const OpCase& ycbcr_to_rgb_case();
const OpCase& rgb_to_hsv_case();
const OpCase& hsv_to_rgb_case();
const OpCase& u8_to_unit_case();
const OpCase& unit_to_u8_case();

}  // namespace rivulet
