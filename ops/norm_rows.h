// Row arithmetic that the norms and the fused norm + modulation share (CPU).
#pragma once

#include <cmath>
#include <cstdint>

namespace rivulet::cpu {

template <class T>
struct Moments {
  T mean, r;  // r = 1 / sqrt(variance + eps)
};

// Two passes: a row is short and the plain sum of squares would cancel.
template <class T>
Moments<T> row_moments(const T* x, int64_t c, T eps) {
  T total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < c; ++j) total += x[j];
  const T mean = total / T(c);
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < c; ++j) squares += (x[j] - mean) * (x[j] - mean);
  return {mean, T(1) / std::sqrt(squares / T(c) + eps)};
}

// dx = r (u - mean(u) - h mean(u h)) with u = g * weight(j), h = (x - mean) r.
template <class T, class Weight>
void layer_norm_row_backward(int64_t c, const T* g, const T* x, T mean, T r, Weight weight, T* dx) {
  T total = 0, dot = 0;
#pragma omp simd reduction(+ : total, dot)
  for (int64_t j = 0; j < c; ++j) {
    const T u = g[j] * weight(j);
    dx[j] = u;  // rounded once: where all of u is its mean, nothing may be left of it below
    total += u;
    dot += u * (x[j] - mean);
  }
  const T shift = total / T(c), pull = dot * r * r / T(c);
  for (int64_t j = 0; j < c; ++j) dx[j] = r * (dx[j] - shift - (x[j] - mean) * pull);
}

}  // namespace rivulet::cpu
