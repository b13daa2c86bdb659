#include "train/video_losses.h"

#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/loss.h"
#include "ops/reduce.h"

namespace rivulet {
namespace {

Tensor mean_abs(const Tensor& x) { return mean(abs(x)); }

void check_pair(const char* who, const Tensor& a, const Tensor& b) {
  check(a.dims() == 5 && a.shape() == b.shape(), who, ": videos of shape ", a.shape(), " and ", b.shape());
}

}  // namespace

Tensor haar_loss(const Tensor& a, const Tensor& b) {
  check_pair("haar_loss", a, b);
  const int64_t H = a.dim(2), W = a.dim(3);
  check(H % 2 == 0 && W % 2 == 0, "haar_loss: ", W, "x", H, " has an odd side");
  const Tensor d = a - b;
  const auto every = [&](int64_t y, int64_t x) { return d.slice(2, y, H, 2).slice(3, x, W, 2); };
  const Tensor p = every(0, 0), q = every(0, 1), r = every(1, 0), s = every(1, 1);
  const Tensor across = p - q, across_below = r - s, down = p - r, down_right = q - s;
  return (mean_abs(across + across_below) + mean_abs(down + down_right) + mean_abs(across - across_below)) /
         6.0;
}

Tensor laplacian_loss(const Tensor& a, const Tensor& b, int levels) {
  check_pair("laplacian_loss", a, b);
  check(levels >= 1, "laplacian_loss: ", levels, " levels");
  Tensor d = (a - b).flatten(0, 1), total;
  for (int l = 0;; ++l) {
    const int64_t H = d.dim(1), W = d.dim(2);
    const bool last = l + 1 == levels || H % 2 != 0 || W % 2 != 0;
    const Tensor smaller = last ? Tensor() : resize(d, H / 2, W / 2);
    const Tensor part = mean_abs(last ? d : d - resize(smaller, H, W));
    total = total.defined() ? total + part : part;
    if (last) return total;
    d = smaller;
  }
}

Tensor kl_loss(const Tensor& mu, const Tensor& log_variance) {
  check(mu.dims() == log_variance.dims() && (log_variance.dim(-1) == 1 || log_variance.dim(-1) == mu.dim(-1)),
        "kl_loss: means of shape ", mu.shape(), ", log-variances ", log_variance.shape());
  return (mean(square(mu)) + mean(exp(log_variance) - log_variance) - 1.0) * 0.5;
}

Tensor feature_loss(const Tensors& student, const Tensors& teacher) {
  check(!student.empty() && student.size() == teacher.size(), "feature_loss: ", student.size(),
        " layers and ", teacher.size());
  Tensor total;
  for (size_t i = 0; i < student.size(); ++i) {
    const Tensor t = teacher[i].detach();
    const Tensor size = mean(square(t)) + 1e-12;
    const Tensor part = mse_loss(student[i], t) / size;
    total = total.defined() ? total + part : part;
  }
  return total / double(student.size());
}

}  // namespace rivulet
