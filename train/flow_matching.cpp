#include "train/flow_matching.h"

#include <algorithm>
#include <cmath>

namespace rivulet {

double shift_sigma(double u, double k) { return k * u / (1 + (k - 1) * u); }

NoiseLevel level_of_index(int64_t i, double shift) {
  const double sigma = shift_sigma(static_cast<double>(i) / 1000, shift);
  // Rounding must not push a level that is a whole number of thousandths to the one below.
  return {sigma, static_cast<int64_t>(std::floor(1000 * sigma + 1e-9))};
}

NoiseLevel draw_level(Rng& rng, double shift, double mean, double std) {
  const double u = 1 / (1 + std::exp(-(mean + std * rng.normal())));
  return level_of_index(std::min<int64_t>(static_cast<int64_t>(std::floor(1000 * u)), 999), shift);
}

bool draw_text_dropout(Rng& rng, double p) { return rng.uniform() < p; }

}  // namespace rivulet
