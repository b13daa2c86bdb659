// How work on the GPU is timed, beside what the GPU can do at best.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "tensor/tensor.h"

namespace rivulet::bench {

// Writes more than the second-level cache holds, which drives everything else out.
class Flush {
 public:
  void operator()() const { block_.fill(value_ = 1 - value_); }

 private:
  Tensor block_{{int64_t(512) << 18}, DType::f32, Device::cuda};
  mutable double value_ = 0;
};

struct Ceilings {
  double copy_gb_s, gemm_tflop_s;
};

// A copy of 1 GiB, and a product of [8192, 8192] matrices.
Ceilings measure_ceilings(DType dtype, const Flush& flush);

// Fewest bytes moved and operations of one run; 0 = not counted.
struct Counts {
  double bytes = 0, flops = 0;
};

// Runs before the repetitions that count.
constexpr int kGpuWarmUps = 3;

// Seconds of f() by the GPU's clock, sorted. `before` keeps the GPU busy while the host gives it the work of
// f, so that no time to launch counts.
std::vector<double> seconds_of(int repetitions, const std::function<void()>& before,
                               const std::function<void()>& f);

// Times f with its inputs in memory (cold) and just after another run (warm); prints a line and returns the
// row of the result file. print_head() prints what the columns are.
void print_head();
nlohmann::json time_work(const std::string& name, const std::function<void()>& f, const Counts& counts,
                         int repetitions, const Flush& flush, const Ceilings& best);

}  // namespace rivulet::bench
