#include "apps/safeguards/regions.h"

#include <cmath>

#include "apps/frames.h"

namespace rivulet {

Tensor region_mask(const Tensor& image, int64_t height, int64_t width) {
  const Tensor fitted = resize_frames(image.unsqueeze(0), {width, height}).contiguous();
  const Tensor mask({height, width}, DType::u8);
  const uint8_t* rgb = fitted.data<uint8_t>();
  for (int64_t i = 0; i < mask.numel(); ++i) mask.data<uint8_t>()[i] = rgb[3 * i + 1];
  return mask;
}

Tensor blend(const Tensor& source, const Tensor& edit, double strength, const Tensor& mask) {
  check(source.shape() == edit.shape(), "blend: the source is ", source.shape(), ", the edit ", edit.shape());
  const Tensor result = edit.clone(), dense = source.contiguous();
  if (strength == 1 && !mask) return result;
  const int64_t pixels = edit.dim(1) * edit.dim(2);
  check(!mask || mask.numel() == pixels, "blend: the mask is ", mask ? mask.shape() : Shape{});
  const uint8_t *s = dense.data<uint8_t>(), *m = mask ? mask.data<uint8_t>() : nullptr;
  uint8_t* e = result.data<uint8_t>();
  for (int64_t i = 0; i < edit.dim(0) * pixels; ++i) {
    const float share = float(strength) * (m ? 1 - float(m[i % pixels]) / 255 : 1);
    for (int64_t c = 3 * i; c < 3 * i + 3; ++c)
      e[c] = uint8_t(std::lround(float(s[c]) + share * (float(e[c]) - float(s[c]))));
  }
  return result;
}

}  // namespace rivulet
