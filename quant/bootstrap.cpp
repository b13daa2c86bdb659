#include "quant/bootstrap.h"

#include <algorithm>
#include <boost/math/distributions/normal.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "tensor/error.h"

namespace rivulet {
namespace {

struct Cluster {
  double sum = 0;
  double count = 0;
};

// Means of every resample of k clusters when there are at most `limit` of them (k^k), else of `limit` draws.
std::vector<double> resampled_means(const std::vector<Cluster>& c, Rng& rng, int64_t limit) {
  const size_t k = c.size();
  double all = 1;
  for (size_t i = 0; i < k; ++i) all *= double(k);
  const bool exact = all <= double(limit);
  std::vector<double> means(exact ? size_t(all) : size_t(limit));
  std::vector<size_t> pick(k, 0);
  for (double& mean : means) {
    Cluster total;
    for (size_t& i : pick) {
      if (!exact) i = size_t(rng.below(int64_t(k)));
      total.sum += c[i].sum;
      total.count += c[i].count;
    }
    mean = total.sum / total.count;
    if (exact)
      for (size_t i = 0; i < k && ++pick[i] == k; ++i) pick[i] = 0;
  }
  std::sort(means.begin(), means.end());
  return means;
}

// The value below which the share q of sorted values lies, between neighbours by a straight line.
double quantile(const std::vector<double>& sorted, double q) {
  const double at = std::clamp(q, 0.0, 1.0) * double(sorted.size() - 1);
  const size_t i = std::min(size_t(at), sorted.size() - 2);
  return sorted[i] + (at - double(i)) * (sorted[i + 1] - sorted[i]);
}

// Efron's acceleration: the skewness of the means that leave one cluster out.
double acceleration(const std::vector<Cluster>& c, const Cluster& total) {
  std::vector<double> without;
  for (const Cluster& one : c) without.push_back((total.sum - one.sum) / (total.count - one.count));
  const double mean = std::accumulate(without.begin(), without.end(), 0.0) / double(without.size());
  double two = 0, three = 0;
  for (const double w : without) {
    two += (mean - w) * (mean - w);
    three += (mean - w) * (mean - w) * (mean - w);
  }
  return two > 0 ? three / (6 * std::pow(two, 1.5)) : 0;
}

// Fisher's sign test with sizes: how often the sum is as far from 0 when each cluster's sign is a coin's.
double sign_flip_p(const std::vector<Cluster>& c, Rng& rng, int64_t limit) {
  const bool exact = c.size() < 31 && (int64_t(1) << c.size()) <= limit;
  const int64_t count = exact ? int64_t(1) << c.size() : limit;
  double observed = 0, size = 0;
  for (const Cluster& one : c) observed += one.sum, size += std::abs(one.sum);
  int64_t as_far = 0;
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (size_t k = 0; k < c.size(); ++k) {
      const bool flip = exact ? (i >> k) & 1 : rng.below(2) == 1;
      sum += flip ? -c[k].sum : c[k].sum;
    }
    as_far += std::abs(sum) >= std::abs(observed) - 1e-12 * size;
  }
  // Drawn flips cannot show less than one in their number.
  return exact ? double(as_far) / double(count) : double(as_far + 1) / double(count + 1);
}

}  // namespace

Interval bootstrap_mean(const std::vector<double>& values, const std::vector<int>& clusters, Rng rng,
                        int64_t resamples, double level) {
  check(!values.empty(), "bootstrap: no values");
  check(clusters.empty() || clusters.size() == values.size(), "bootstrap: ", values.size(), " values, ",
        clusters.size(), " clusters");
  std::map<int, Cluster> by_name;
  Cluster total;
  for (size_t i = 0; i < values.size(); ++i) {
    Cluster& c = by_name[clusters.empty() ? int(i) : clusters[i]];
    c.sum += values[i];
    c.count += 1;
    total.sum += values[i];
    total.count += 1;
  }
  Interval out;
  out.mean = total.sum / total.count;
  out.low = -(out.high = std::numeric_limits<double>::infinity());
  if (by_name.size() < 2) return out;
  std::vector<Cluster> c;
  for (const auto& [name, cluster] : by_name) c.push_back(cluster);
  const std::vector<double> means = resampled_means(c, rng, resamples);

  // Means equal to the observed one up to rounding count half on either side.
  const double near = 1e-12 * (std::abs(means.front()) + std::abs(means.back()));
  const auto share_below = [&](double x) {
    const auto low = std::lower_bound(means.begin(), means.end(), x - near);
    const auto high = std::upper_bound(means.begin(), means.end(), x + near);
    return (double(low - means.begin()) + double(high - means.begin())) / (2 * double(means.size()));
  };
  out.p = sign_flip_p(c, rng, resamples);
  if (means.back() - means.front() <= 2 * near) {
    out.low = out.high = out.mean;
    return out;
  }
  const boost::math::normal normal;
  const double edge = 0.5 / double(means.size());
  const double z0 = boost::math::quantile(normal, std::clamp(share_below(out.mean), edge, 1 - edge));
  const double a = acceleration(c, total);
  const auto end = [&](double q) {
    const double z = z0 + boost::math::quantile(normal, q);
    return quantile(means, boost::math::cdf(normal, z0 + z / (1 - a * z)));
  };
  out.low = end((1 - level) / 2);
  out.high = end((1 + level) / 2);
  return out;
}

std::vector<double> holm(const std::vector<double>& p) {
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] < p[b]; });
  std::vector<double> out(p.size());
  double worst = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    worst = std::max(worst, std::min(1.0, p[order[i]] * double(p.size() - i)));
    out[order[i]] = worst;
  }
  return out;
}

}  // namespace rivulet
