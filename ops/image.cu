#include "ops/image.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

struct Sizes {
  int64_t n, m, inner, count;
};

// One thread per output value; `inner` is the fastest index.
template <class T>
__global__ void resample_kernel(Sizes s, const T* x, const int64_t* first, const int64_t* offset,
                                const T* weights, T* y) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= s.count) return;
  const int64_t j = i % s.inner, o = i / s.inner % s.m, outer = i / s.inner / s.m;
  const T* in = x + (outer * s.n + first[o]) * s.inner + j;
  T sum = 0;
  for (int64_t k = offset[o]; k < offset[o + 1]; ++k, in += s.inner) sum += weights[k] * *in;
  y[i] = sum;
}

template <class T>
struct ColorNumbers {
  T m[9], s[3];
};

// f(values in, values out) for every pixel of three channels.
template <class T, class F>
__global__ void pixel_kernel(int64_t pixels, const T* x, T* y, F f) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < pixels) f(x + 3 * i, y + 3 * i);
}
template <class T, class F>
void for_each_pixel(const Tensor& x, Tensor& y, const F& f) {
  const int64_t pixels = x.numel() / 3;
  launch({blocks_for(pixels, kThreads), kThreads}, pixel_kernel<T, F>, pixels, x.data<T>(), y.data<T>(), f);
}

template <class T>
struct MapColor {
  ColorNumbers<T> n;
  __device__ void operator()(const T* in, T* out) const {
    const T a = in[0], b = in[1], c = in[2];
#pragma unroll
    for (int i = 0; i < 3; ++i) out[i] = n.m[3 * i] * a + n.m[3 * i + 1] * b + n.m[3 * i + 2] * c + n.s[i];
  }
};

template <class T>
struct ToHsv {
  __device__ void operator()(const T* in, T* out) const {
    const T r = in[0], g = in[1], b = in[2];
    const T high = r > g ? r : g, low = r < g ? r : g;
    const T top = high > b ? high : b, range = top - (low < b ? low : b);
    T sextant = 0;
    if (range > T(0)) {
      if (top == r)
        sextant = (g - b) / range;
      else if (top == g)
        sextant = T(2) + (b - r) / range;
      else
        sextant = T(4) + (r - g) / range;
    }
    out[0] = (sextant < T(0) ? sextant + T(6) : sextant) / T(6);
    out[1] = top > T(0) ? range / top : T(0);
    out[2] = top;
  }
};

template <class T>
struct FromHsv {
  __device__ void operator()(const T* in, T* out) const {
    const T h = in[0] - floor(in[0]), s = in[1], v = in[2];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const T k = fmod(T(5 - 2 * c) + T(6) * h, T(6)), other = T(4) - k, least = k < other ? k : other;
      out[c] = v - v * s * (least < T(0) ? T(0) : least > T(1) ? T(1) : least);
    }
  }
};

__global__ void u8_to_unit_kernel(int64_t n, const uint8_t* x, float* y) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) y[i] = float(x[i]) / 255.f;
}

template <class T>
__global__ void unit_to_u8_kernel(int64_t n, const T* x, uint8_t* y) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const T low = x[i] > T(0) ? x[i] : T(0);  // also turns NaN into 0
  y[i] = uint8_t((low < T(1) ? low : T(1)) * T(255) + T(0.5));
}

// A host list on the device of `like`.
template <class T, class V>
Tensor upload(const std::vector<V>& values, const Tensor& like) {
  Tensor list({int64_t(values.size())}, dtype_of<T>::value);
  std::copy(values.begin(), values.end(), list.data<T>());
  return list.to(like.device());
}

}  // namespace

void resample(const Tensor& x, const Resampling& matrix, Tensor& y) {
  dispatch_real(x.dtype(), "resize", [&]<class T>() {
    const Tensor first = upload<int64_t>(matrix.first, x), offset = upload<int64_t>(matrix.offset, x),
                 weights = upload<T>(matrix.weights, x);
    launch({blocks_for(y.numel(), kThreads), kThreads}, resample_kernel<T>,
           Sizes{x.dim(1), y.dim(1), x.dim(2), y.numel()}, x.data<T>(), first.data<int64_t>(),
           offset.data<int64_t>(), weights.data<T>(), y.data<T>());
  });
}

void color_map(const Tensor& x, const ColorMap& map, Tensor& y) {
  dispatch_real(x.dtype(), "color_map", [&]<class T>() {
    MapColor<T> f;
    std::copy(map.matrix.begin(), map.matrix.end(), f.n.m);
    std::copy(map.shift.begin(), map.shift.end(), f.n.s);
    for_each_pixel<T>(x, y, f);
  });
}

void u8_to_unit(const Tensor& x, Tensor& y) {
  launch({blocks_for(x.numel(), kThreads), kThreads}, u8_to_unit_kernel, x.numel(), x.data<uint8_t>(),
         y.data<float>());
}

void unit_to_u8(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "unit_to_u8", [&]<class T>() {
    launch({blocks_for(x.numel(), kThreads), kThreads}, unit_to_u8_kernel<T>, x.numel(), x.data<T>(),
           y.data<uint8_t>());
  });
}

void rgb_to_hsv(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "rgb_to_hsv", [&]<class T>() { for_each_pixel<T>(x, y, ToHsv<T>{}); });
}

void hsv_to_rgb(const Tensor& x, Tensor& y) {
  dispatch_real(x.dtype(), "hsv_to_rgb", [&]<class T>() { for_each_pixel<T>(x, y, FromHsv<T>{}); });
}

}  // namespace rivulet::cuda
