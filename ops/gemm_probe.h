// What cuBLASLt multiplies on this GPU, and how fast: every way of scaling 8- and 4-bit operands, with every
// type of result and epilogue, on given shapes (precision.md 2.7). The answer of the library's own search
// counts; what its descriptors accept says nothing.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace rivulet {

struct GemmProbe {
  std::string scaling, out, epilogue;
  bool fast_sums = false;
  std::array<int64_t, 3> shape{};  // m, n, k of C[m, n] = A[m, k] B[n, k]^T
  std::string status;              // "ok", or the library's word
  int algorithms = 0;              // that it recommends, of at most 16
  double first_us = 0, best_us = 0;
  double tflop_s() const { return best_us > 0 ? 2e-6 * double(shape[0] * shape[1] * shape[2]) / best_us : 0; }
};

namespace cuda {
std::vector<GemmProbe> probe_gemms(const std::vector<std::array<int64_t, 3>>& shapes);
}

}  // namespace rivulet
