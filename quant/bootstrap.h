// Intervals for means over clips, by resampling whole source videos: clips cut from one video stay together.
#pragma once

#include <vector>

#include "tensor/random.h"

namespace rivulet {

struct Interval {
  double mean = 0, low = 0, high = 0;
  // Two-sided, of a mean of 0, by flipping the signs of clusters: exact where they are few. Five clusters
  // cannot show less than 1/16.
  double p = 1;
  // Nothing to resample: one cluster alone. low and high are then infinite.
  bool defined() const { return low > -1e300 && high < 1e300; }
  bool excludes_zero() const { return low > 0 || high < 0; }
};

// Mean of values[i] with a bias-corrected and accelerated 95 % interval (Efron 1987). clusters[i] names the
// video of value i; empty: every value by itself. For a paired comparison give the differences. Where few
// clusters allow it, all resamples are counted and the interval is exact; else `resamples` are drawn.
Interval bootstrap_mean(const std::vector<double>& values, const std::vector<int>& clusters, Rng rng,
                        int64_t resamples = 10000, double level = 0.95);

// p-values of one family, adjusted by Holm's step-down procedure (1979); in the order given.
std::vector<double> holm(const std::vector<double>& p);

}  // namespace rivulet
