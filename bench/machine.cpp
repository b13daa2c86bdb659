#include "bench/machine.h"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

#include "tensor/parallel.h"

namespace rivulet::bench {
namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Vector = float __attribute__((vector_size(4 * kLanes)));

// Fewest seconds of several runs.
template <class F>
double best_seconds(int runs, F&& f) {
  double best = 1e30;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Independent chains enough to hide the latency of the multiply-add; the sum keeps them from being removed.
float multiply_add(int64_t rounds) {
  constexpr int kChains = 16;
  Vector sums[kChains], factor = {}, term = {};
  factor += 0.999f;
  term += 1e-3f;
  for (int c = 0; c < kChains; ++c) sums[c] = term * float(c);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * factor + term;
  }
  float total = 0;
  for (const Vector& s : sums)
    for (int l = 0; l < kLanes; ++l) total += s[l];
  return total;
}

double fma_gflops(int threads) {
  constexpr int64_t kRounds = 2'000'000;
  std::vector<float> results(size_t(threads) * 16);
  const double seconds = best_seconds(5, [&] {
    parallel_for(threads, 1,
                 [&](int64_t begin, int64_t) { results[size_t(begin) * 16] = multiply_add(kRounds); });
  });
  return 2.0 * 16 * kLanes * double(kRounds) * threads / seconds * 1e-9;
}

double copy_gbs(int threads) {
  const int64_t bytes = 256 << 20, piece = bytes / threads;
  std::vector<char> from(size_t(bytes), 1), to(size_t(bytes), 2);
  const double seconds = best_seconds(5, [&] {
    parallel_for(bytes, piece, [&](int64_t begin, int64_t end) {
      std::memcpy(to.data() + begin, from.data() + begin, size_t(end - begin));
    });
  });
  return 2.0 * double(bytes) / seconds * 1e-9;
}

}  // namespace

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

Machine measure_machine() {
  const int threads = num_threads();
  return {cpu_model(), threads, copy_gbs(threads), fma_gflops(threads)};
}

}  // namespace rivulet::bench
