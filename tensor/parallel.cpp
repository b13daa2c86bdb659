#include "tensor/parallel.h"

#include <omp.h>

namespace rivulet {

int num_threads() { return omp_get_max_threads(); }
void set_threads(int n) { omp_set_num_threads(std::max(n, 1)); }

}  // namespace rivulet
