#include "models/colour_basis.h"

#include <array>

#include "ops/elementwise.h"
#include "ops/shape.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace {

constexpr double kTiny = 1e-3;

Tensor smoothstep(const Tensor& x, double from, double to) {
  const Tensor t = clamp((x - from) * (1 / (to - from)), 0, 1);
  return t * t * (3.0 - 2.0 * t);
}

// A Gaussian of sigma 1.6 in seven taps along `dim`, edges repeated.
Tensor blur_along(const Tensor& x, int dim) {
  constexpr std::array<double, 4> kTaps{0.2613, 0.2150, 0.1197, 0.03465};
  const int64_t n = x.dim(dim);
  const Tensor first = x.slice(dim, 0, 1), last = x.slice(dim, n - 1, n);
  const Tensor wide = cat({first, first, first, x, last, last, last}, dim);
  Tensor sum = x * kTaps[0];
  for (int64_t k = 1; k < 4; ++k)
    sum = sum + (wide.slice(dim, 3 - k, 3 - k + n) + wide.slice(dim, 3 + k, 3 + k + n)) * kTaps[size_t(k)];
  return sum;
}

// Three pictures of three planes each, [F, H, W, 3], of pixels in [0, 1].
std::array<Tensor, 3> colour_functions(const Tensor& pixels) {
  const Tensor r = pixels.select(3, 0).contiguous(), g = pixels.select(3, 1).contiguous(),
               b = pixels.select(3, 2).contiguous();
  const Tensor high_rg = maximum(r, g), low_rg = minimum(r, g);
  const Tensor high = maximum(high_rg, b), chroma = high - minimum(low_rg, b);
  const Tensor weight = smoothstep(chroma / (high + kTiny), 0.2, 0.6) / (chroma + kTiny);
  const auto band = [&](const Tensor& amount) { return square(relu(amount)) * weight; };
  const Tensor primaries = stack({band(r - maximum(g, b)), band(g - maximum(r, b)), band(b - high_rg)}, 3);
  const Tensor secondaries = stack({band(low_rg - b), band(minimum(g, b) - r), band(minimum(r, b) - g)}, 3);
  const Tensor luma = 0.299 * r + 0.587 * g + 0.114 * b, blur = blur_along(blur_along(luma, 2), 1);
  const Tensor dark = relu(blur - luma) / (blur + 0.08);
  return {primaries, secondaries, stack({square(luma), dark, square(dark)}, 3)};
}

}  // namespace

Tensor colour_basis(const PatchCodec& codec, const Tensor& latents) {
  const NoGrad off;  // of the source alone, which is data
  const int64_t B = latents.dim(0), C = latents.dim(1), T = latents.dim(2), H = latents.dim(3),
                W = latents.dim(4);
  const auto by_colour = [&](const Tensor& z) { return z.reshape({B, C / 3, 3, T * H * W}); };
  const Tensor pixels = codec.decode(latents.permute({1, 0, 2, 3, 4}).reshape({1, C, B * T, H, W}));
  Tensors parts{by_colour(latents)};
  for (const Tensor& planes : colour_functions(clamp(pixels, 0, 1))) {
    // The codec takes p to 2 p - 1; a half more, and zero stays zero.
    const Tensor z = codec.encode(planes + 0.5).reshape({C, B, T, H, W});
    parts.push_back(by_colour(z.permute({1, 0, 2, 3, 4})));
  }
  return cat(parts, 2);
}

}  // namespace rivulet
