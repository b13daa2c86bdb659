#include "quant/gram.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/matmul.h"
#include "tensor/autograd.h"
#include "tensor/random.h"

namespace rivulet {
namespace {

constexpr int64_t kRun = 4096;  // products summed in f32 before they go to f64

double mean_of(const std::vector<double>& v) {
  return std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
}

std::vector<double> ranks(const std::vector<double>& v) {
  std::vector<size_t> order(v.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return v[a] < v[b]; });
  std::vector<double> rank(v.size());
  for (size_t begin = 0, end; begin < order.size(); begin = end) {
    for (end = begin; end < order.size() && v[order[end]] == v[order[begin]]; ++end) {
    }
    for (size_t i = begin; i < end; ++i) rank[order[i]] = double(begin + end - 1) / 2;
  }
  return rank;
}

struct Moments {
  double xx = 0, xy = 0, yy = 0;
};
Moments centred(const std::vector<double>& x, const std::vector<double>& y) {
  const double mx = mean_of(x), my = mean_of(y);
  Moments m;
  for (size_t i = 0; i < x.size(); ++i) {
    m.xx += (x[i] - mx) * (x[i] - mx);
    m.xy += (x[i] - mx) * (y[i] - my);
    m.yy += (y[i] - my) * (y[i] - my);
  }
  return m;
}

}  // namespace

Matrix gram_matrix(const Tensor& errors, double scale) {
  check(errors.dims() == 2, "gram_matrix: errors have shape ", errors.shape());
  check(scale > 0, "gram_matrix: the scale is ", scale);
  const NoGrad off;
  const int64_t n = errors.dim(0), N = errors.dim(1);
  Matrix gram(n);
  for (int64_t begin = 0; begin < N; begin += kRun) {
    const Tensor run = errors.slice(1, begin, std::min(N, begin + kRun)).to(DType::f32).contiguous();
    const Tensor products = linear(run, run);
    const float* p = products.data<float>();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) gram(i, j) += double(p[i * n + j]);
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) gram(j, i) = gram(i, j) /= scale;
  return gram;
}

double energy(const Tensor& reference) {
  const std::vector<double> v = reference.to_vector();
  const double mean = mean_of(v);
  double sum = 0;
  for (const double x : v) sum += (x - mean) * (x - mean);
  check(sum > 0, "policy search: the reference is constant, errors relative to it mean nothing");
  return sum;
}

Tensor sketch(const Tensor& values, int64_t size) {
  const Tensor in = values.reshape({-1}).to(Device::cpu).to(DType::f32).contiguous();
  if (in.numel() <= size) return in;
  std::vector<double> sums(size_t(size), 0);
  double before = 0, after = 0;
  const float* p = in.data<float>();
  for (int64_t i = 0; i < in.numel(); ++i) {
    const auto bits = philox4x32({uint32_t(i), uint32_t(uint64_t(i) >> 32), 0, 0}, {0x736b6574u, 0});
    sums[size_t((uint64_t(bits[0]) * uint64_t(size)) >> 32)] += bits[1] & 1 ? double(p[i]) : -double(p[i]);
    before += double(p[i]) * double(p[i]);
  }
  for (const double s : sums) after += s * s;
  const double scale = after > 0 ? std::sqrt(before / after) : 0;
  Tensor out({size});
  for (int64_t i = 0; i < size; ++i) out.data<float>()[i] = float(scale * sums[size_t(i)]);
  return out;
}

Agreement agreement(const std::vector<double>& x, const std::vector<double>& y) {
  check(x.size() == y.size() && x.size() >= 2, "agreement: ", x.size(), " predictions, ", y.size(),
        " measurements");
  const Moments m = centred(x, y);
  check(m.xx > 0 && m.yy > 0, "agreement: all values are alike");
  Agreement a;
  a.count = int64_t(x.size());
  a.slope = m.xy / m.xx;
  a.intercept = mean_of(y) - a.slope * mean_of(x);
  a.r2 = m.xy * m.xy / (m.xx * m.yy);
  double xx = 0, xy = 0, missed = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += x[i] * x[i];
    xy += x[i] * y[i];
    missed += (y[i] - x[i]) * (y[i] - x[i]);
  }
  a.slope_through_zero = xy / xx;
  a.r2_as_is = 1 - missed / m.yy;
  const Moments r = centred(ranks(x), ranks(y));
  a.rank = r.xy / std::sqrt(r.xx * r.yy);
  return a;
}

}  // namespace rivulet
