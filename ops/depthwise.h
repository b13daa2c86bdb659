// How depthwise 3x3 convolutions walk an image with channels last (CPU).
#pragma once

#include <cstdint>

namespace rivulet::cpu {

// Points at the channels of the nine neighbours of pixel (y, x) of one image; at `zero` outside of it.
template <class T>
void neighbours(const T* image, int64_t height, int64_t width, int64_t c, int64_t y, int64_t x, const T* zero,
                const T** out) {
  for (int64_t dy = -1; dy <= 1; ++dy)
    for (int64_t dx = -1; dx <= 1; ++dx) {
      const int64_t v = y + dy, u = x + dx;
      const bool inside = v >= 0 && v < height && u >= 0 && u < width;
      *out++ = inside ? image + (v * width + u) * c : zero;
    }
}

// The c channels of one pixel from those of its nine neighbours.
template <class T>
void convolve(const T* const* p, const T* const* w, const T* add, int64_t c, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < c; ++j)
    out[j] = add[j] + w[0][j] * p[0][j] + w[1][j] * p[1][j] + w[2][j] * p[2][j] + w[3][j] * p[3][j] +
             w[4][j] * p[4][j] + w[5][j] * p[5][j] + w[6][j] * p[6][j] + w[7][j] * p[7][j] +
             w[8][j] * p[8][j];
}

}  // namespace rivulet::cpu
