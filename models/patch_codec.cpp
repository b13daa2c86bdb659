#include "models/patch_codec.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "ops/elementwise.h"
#include "ops/matmul.h"

namespace rivulet {

PatchCodec::PatchCodec(int64_t patch)
    : patch_(patch), basis_({3 * patch * patch, patch * patch * 3}, DType::f32) {
  check(patch >= 1 && patch <= 64, "patch codec: patch ", patch);
  const auto dct = [&](int64_t k, int64_t x) {
    return std::sqrt((k ? 2.0 : 1.0) / double(patch)) *
           std::cos(std::numbers::pi * (double(x) + 0.5) * double(k) / double(patch));
  };
  constexpr double r2 = 0.70710678118654752, r3 = 0.57735026918962576, r6 = 0.40824829046386302;
  constexpr double colour[3][3] = {{r3, r3, r3}, {r2, 0, -r2}, {-r6, 2 * r6, -r6}};
  std::vector<int64_t> order(size_t(patch * patch));  // frequencies from low to high
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return a / patch + a % patch < b / patch + b % patch; });
  float* out = basis_.data<float>();
  for (int64_t f : order)
    for (const auto& mix : colour)
      for (int64_t y = 0; y < patch; ++y)
        for (int64_t x = 0; x < patch; ++x)
          for (double weight : mix) *out++ = float(dct(f / patch, y) * dct(f % patch, x) * weight);
}

Tensor PatchCodec::encode(const Tensor& frames) const {
  check(frames.dims() == 4 && frames.dim(3) == 3, "patch codec: frames have shape ", frames.shape(),
        ", [F, H, W, 3] is needed");
  const int64_t F = frames.dim(0), h = frames.dim(1) / patch_, w = frames.dim(2) / patch_, p = patch_;
  check(frames.dim(1) == h * p && frames.dim(2) == w * p, "patch codec: ", frames.dim(2), "x", frames.dim(1),
        " is not a multiple of ", p);
  const Tensor pixels = frames.to(DType::f32) * (frames.dtype() == DType::u8 ? 2.0 / 255 : 2.0) - 1.0;
  const Tensor patches =
      pixels.reshape({F, h, p, w, p, 3}).permute({0, 1, 3, 2, 4, 5}).reshape({F, h, w, p * p * 3});
  return linear(patches, basis_.to(patches.device()), {}).permute({3, 0, 1, 2}).unsqueeze(0);
}

Tensor PatchCodec::decode(const Tensor& latents) const {
  check(latents.dims() == 5 && latents.dim(0) == 1 && latents.dim(1) == channels(),
        "patch codec: latents have shape ", latents.shape(), ", [1, ", channels(), ", F, H, W] is needed");
  const int64_t F = latents.dim(2), h = latents.dim(3), w = latents.dim(4), p = patch_;
  const Tensor patches =
      linear(latents.select(0, 0).permute({1, 2, 3, 0}), basis_.to(latents.device()).transpose(0, 1), {});
  const Tensor pixels =
      patches.reshape({F, h, w, p, p, 3}).permute({0, 1, 3, 2, 4, 5}).reshape({F, h * p, w * p, 3});
  return (pixels + 1.0) * 0.5;
}

}  // namespace rivulet
