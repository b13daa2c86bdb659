#include "bench/gpu_timing.h"

#include <algorithm>
#include <cstdio>

#include "bench/report.h"
#include "ops/matmul.h"
#include "tensor/autograd.h"
#include "tensor/cuda.h"
#include "tensor/random.h"

namespace rivulet::bench {

std::vector<double> seconds_of(int repetitions, const std::function<void()>& before,
                               const std::function<void()>& f) {
  std::vector<double> seconds;
  for (int i = 0; i < repetitions + kGpuWarmUps; ++i) {
    before();
    const GpuMark begin;
    f();
    const GpuMark end;
    if (i >= kGpuWarmUps) seconds.push_back(end.since(begin));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

Ceilings measure_ceilings(DType dtype, const Flush& flush) {
  const int64_t bytes = int64_t(1) << 30;
  const Tensor from({bytes / 4}, DType::f32, Device::cuda), to = empty_like(from);
  from.fill(1.5);
  const double copy = Timing{seconds_of(10, flush, [&] { to.copy_from(from); })}.median();
  const NoGrad off;
  Rng rng{5};
  const int64_t n = 8192;
  const Tensor a = randn({n, n}, rng, dtype, Device::cuda), b = randn({n, n}, rng, dtype, Device::cuda);
  const double gemm = Timing{seconds_of(5, flush, [&] { linear(a, b); })}.median();
  return {2.0 * double(bytes) / copy * 1e-9, 2.0 * double(n) * n * n / gemm * 1e-12};
}

void print_head() {
  std::printf("%10s %13s %6s %7s %7s %7s   work\n", "cold", "warm", "+-", "copy", "copy", "gemm");
}

nlohmann::json time_work(const std::string& name, const std::function<void()>& f, const Counts& counts,
                         int repetitions, const Flush& flush, const Ceilings& best) {
  const Timing cold{seconds_of(repetitions, flush, f)};
  const auto run_before = [&] {
    flush();
    f();
  };
  const Timing warm{seconds_of(repetitions, run_before, f)};
  nlohmann::json row = {{"name", name},
                        {"warm_up_runs", kGpuWarmUps},
                        {"repetitions", repetitions},
                        {"cold_s", cold.median()},
                        {"cold_spread", cold.spread()},
                        {"cold_min_s", cold.seconds.front()},
                        {"cold_max_s", cold.seconds.back()},
                        {"warm_s", warm.median()},
                        {"warm_spread", warm.spread()}};
  std::printf("%10.1f %10.1f us %5.1f%%", cold.median() * 1e6, warm.median() * 1e6, 100 * cold.spread());
  const auto share = [&](const char* key, double achieved, double ceiling) {
    if (achieved <= 0) return std::printf(" %7s", "-");
    row[key] = 100 * achieved / ceiling;
    return std::printf(" %6.1f%%", 100 * achieved / ceiling);
  };
  share("copy_percent_cold", counts.bytes / cold.median() * 1e-9, best.copy_gb_s);
  share("copy_percent_warm", counts.bytes / warm.median() * 1e-9, best.copy_gb_s);
  share("gemm_percent_cold", counts.flops / cold.median() * 1e-12, best.gemm_tflop_s);
  std::printf("   %s\n", name.c_str());
  std::fflush(stdout);
  return row;
}

}  // namespace rivulet::bench
