#include "train/metrics.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "train/pixel.h"

namespace rivulet {
namespace {

void check_pair(const Tensor& a, const Tensor& b, const char* who) {
  for (const Tensor* t : {&a, &b})
    check(t->defined() && t->dims() == 4 && t->dim(3) == 3 && t->dtype() == DType::f32 && t->numel() > 0, who,
          ": needs f32 videos [F, H, W, 3]");
  check(a.shape() == b.shape(), who, ": videos have shapes ", a.shape(), " and ", b.shape());
}

void check_mask(const Tensor& a, const Tensor& mask, const char* who) {
  check(mask.defined() && mask.dtype() == DType::f32 && mask.shape() == Shape{a.dim(0), a.dim(1), a.dim(2)},
        who, ": needs an f32 mask [F, H, W] for a video ", a.shape());
}

// Squared differences and their weights, added up.
struct Sum {
  double error = 0, weight = 0;
  double root() const { return std::sqrt(error / (3 * weight)); }
};

// Over `n` pixels; w is null for weights of 1, `outside` weighs by 1 - w.
Sum squared(const float* a, const float* b, const float* w, int64_t n, bool outside = false) {
  Sum sum;
  for (int64_t i = 0; i < n; ++i, a += 3, b += 3) {
    const double weight = !w ? 1.0 : outside ? 1.0 - double(w[i]) : double(w[i]);
    double error = 0;
    for (int c = 0; c < 3; ++c) error += (double(a[c]) - double(b[c])) * (double(a[c]) - double(b[c]));
    sum.error += weight * error;
    sum.weight += weight;
  }
  return sum;
}

double decibels(double rmse) {
  return rmse > 0 ? -20 * std::log10(rmse) : std::numeric_limits<double>::infinity();
}

double mean(const std::vector<double>& v) {
  return std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
}

}  // namespace

double rmse(const Tensor& a, const Tensor& b) {
  check_pair(a, b, "rmse");
  const Tensor x = a.contiguous(), y = b.contiguous();
  return squared(x.data<float>(), y.data<float>(), nullptr, x.numel() / 3).root();
}

std::optional<double> masked_rmse(const Tensor& a, const Tensor& b, const Tensor& mask) {
  check_pair(a, b, "masked_rmse");
  check_mask(a, mask, "masked_rmse");
  const Tensor x = a.contiguous(), y = b.contiguous(), m = mask.contiguous();
  const Sum sum = squared(x.data<float>(), y.data<float>(), m.data<float>(), m.numel());
  if (sum.weight <= 0) return std::nullopt;
  return sum.root();
}

std::vector<double> rmse_per_frame(const Tensor& a, const Tensor& b, const Tensor& mask) {
  check_pair(a, b, "rmse_per_frame");
  if (mask.defined()) check_mask(a, mask, "rmse_per_frame");
  const Tensor x = a.contiguous(), y = b.contiguous(), m = mask.defined() ? mask.contiguous() : mask;
  const int64_t pixels = a.dim(1) * a.dim(2);
  std::vector<double> list;
  for (int64_t f = 0; f < a.dim(0); ++f) {
    const float* w = m.defined() ? m.data<float>() + f * pixels : nullptr;
    const Sum sum = squared(x.data<float>() + 3 * f * pixels, y.data<float>() + 3 * f * pixels, w, pixels);
    list.push_back(sum.weight > 0 ? sum.root() : list.empty() ? 0 : list.back());
  }
  return list;
}

double psnr(const Tensor& a, const Tensor& b) { return decibels(rmse(a, b)); }

std::optional<double> psnr_outside(const Tensor& output, const Tensor& target, const Tensor& mask) {
  check_pair(output, target, "psnr_outside");
  check_mask(output, mask, "psnr_outside");
  const Tensor x = output.contiguous(), y = target.contiguous(), m = mask.contiguous();
  const Sum sum = squared(x.data<float>(), y.data<float>(), m.data<float>(), m.numel(), true);
  if (sum.weight <= 0) return std::nullopt;
  return decibels(sum.root());
}

double ssim(const Tensor& a, const Tensor& b) {
  check_pair(a, b, "ssim");
  constexpr double kC1 = 0.01 * 0.01, kC2 = 0.03 * 0.03;
  const Tensor x = a.contiguous(), y = b.contiguous();
  const int64_t h = a.dim(1), w = a.dim(2), wh = std::min<int64_t>(7, h), ww = std::min<int64_t>(7, w);
  double total = 0;
  // Running sums of the five moments: table[k] holds sums over everything above and left of a place.
  std::vector<double> table[5];
  for (int64_t f = 0; f < a.dim(0); ++f) {
    for (auto& t : table) t.assign((h + 1) * (w + 1), 0.0);
    for (int64_t i = 0; i < h; ++i)
      for (int64_t j = 0; j < w; ++j) {
        const int64_t at = 3 * ((f * h + i) * w + j);
        const double p = luma(load_pixel(x.data<float>() + at)), q = luma(load_pixel(y.data<float>() + at));
        const double moments[5] = {p, q, p * p, q * q, p * q};
        const int64_t cell = (i + 1) * (w + 1) + j + 1;
        for (int k = 0; k < 5; ++k)
          table[k][cell] = moments[k] + table[k][cell - 1] + table[k][cell - w - 1] - table[k][cell - w - 2];
      }
    double sum = 0;
    for (int64_t i = 0; i + wh <= h; ++i)
      for (int64_t j = 0; j + ww <= w; ++j) {
        double m[5];
        for (int k = 0; k < 5; ++k) {
          const auto& t = table[k];
          m[k] = (t[(i + wh) * (w + 1) + j + ww] - t[i * (w + 1) + j + ww] - t[(i + wh) * (w + 1) + j] +
                  t[i * (w + 1) + j]) /
                 double(wh * ww);
        }
        const double vp = m[2] - m[0] * m[0], vq = m[3] - m[1] * m[1], cov = m[4] - m[0] * m[1];
        sum +=
            (2 * m[0] * m[1] + kC1) * (2 * cov + kC2) / ((m[0] * m[0] + m[1] * m[1] + kC1) * (vp + vq + kC2));
      }
    total += sum / double((h - wh + 1) * (w - ww + 1));
  }
  return total / double(a.dim(0));
}

std::optional<double> edit_score(const Tensor& output, const Tensor& source, const Tensor& target,
                                 const Tensor& mask, double floor) {
  const auto error = masked_rmse(output, target, mask), copy = masked_rmse(source, target, mask);
  if (!error || *copy <= floor) return std::nullopt;
  return (*copy - *error) / (*copy - floor);
}

std::vector<double> flicker(const Tensor& output, const Tensor& target) {
  check_pair(output, target, "flicker");
  const Tensor y = output.contiguous(), x = target.contiguous();
  const int64_t frame = x.numel() / x.dim(0);
  std::vector<double> list;
  for (int64_t f = 1; f < x.dim(0); ++f) {
    const float *y1 = y.data<float>() + f * frame, *x1 = x.data<float>() + f * frame;
    double sum = 0;
    for (int64_t i = 0; i < frame; ++i)
      sum += std::abs((double(y1[i]) - double(y1[i - frame])) - (double(x1[i]) - double(x1[i - frame])));
    list.push_back(sum / double(frame));
  }
  return list;
}

std::optional<double> boundary_ratio(const std::vector<double>& flicker, const std::vector<int64_t>& chunks) {
  check(!chunks.empty(), "boundary_ratio: no chunk sizes");
  for (const int64_t n : chunks) check(n > 0, "boundary_ratio: a chunk has ", n, " frames");
  std::vector<double> at, inside;
  size_t chunk = 0;
  int64_t next = chunks[0];  // first frame of the next chunk
  for (int64_t t = 1; t <= int64_t(flicker.size()); ++t) {
    (t == next ? at : inside).push_back(flicker[t - 1]);
    if (t == next) next += chunks[std::min(++chunk, chunks.size() - 1)];
  }
  if (at.empty() || inside.empty()) return std::nullopt;
  const double boundary = mean(at), within = mean(inside);
  return boundary == within ? 1 : boundary / within;
}

double drift_slope(const std::vector<double>& error_per_frame) {
  const auto n = double(error_per_frame.size());
  check(n >= 2, "drift_slope: needs at least 2 frames, got ", error_per_frame.size());
  const double middle = (n - 1) / 2, average = mean(error_per_frame);
  double above = 0, below = 0;
  for (size_t i = 0; i < error_per_frame.size(); ++i) {
    above += (double(i) - middle) * (error_per_frame[i] - average);
    below += (double(i) - middle) * (double(i) - middle);
  }
  return 100 * above / below;
}

}  // namespace rivulet
