#include "ops/all.h"

namespace rivulet {

std::span<const OpCase* const> all_op_cases() {
#define RIVULET_CASE_ADDRESS(op) &op##_case(),
  static const OpCase* const cases[] = {RIVULET_OPS(RIVULET_CASE_ADDRESS)};
#undef RIVULET_CASE_ADDRESS
  return cases;
}

double bytes_of(const Shapes& shapes) {
  double bytes = 0;
  for (const Shape& s : shapes) bytes += 4.0 * double(s.numel());
  return bytes;
}

}  // namespace rivulet
