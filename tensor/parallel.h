// Loops over CPU threads. Work is cut into pieces whose bounds depend on n and grain alone, never on the
// number of threads, so a result that sums per piece is the same on every machine and in every run.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rivulet {

// Threads that parallel_for may use; set with OMP_NUM_THREADS or set_threads.
int num_threads();
void set_threads(int n);

// f(begin, end) over [0, n) in pieces of at most `grain`. Exceptions must not leave f.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  grain = std::max<int64_t>(grain, 1);
  const int64_t pieces = (n + grain - 1) / grain;
#pragma omp parallel for schedule(dynamic) if (pieces > 1)
  for (int64_t p = 0; p < pieces; ++p) f(p * grain, std::min(n, (p + 1) * grain));
}

}  // namespace rivulet
