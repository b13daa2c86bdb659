#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace rivulet {

double Schedule::at(int64_t step) const {
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (!cosine) return lr;
  const double length = static_cast<double>(std::max<int64_t>(steps - 1 - warmup, 1));
  const double part = std::clamp(static_cast<double>(step - warmup) / length, 0.0, 1.0);
  const double fall = 0.5 * (1 + std::cos(std::numbers::pi * part));
  return lr * (final_fraction + (1 - final_fraction) * fall);
}

}  // namespace rivulet
