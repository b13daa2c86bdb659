// What this machine can do at best, measured: the ceilings that the rows are held against.
#pragma once

#include <string>

namespace rivulet::bench {

struct Machine {
  std::string cpu;
  int threads = 0;
  double copy_gb_s = 0;    // read + written, copying a block far larger than the caches, all threads
  double fma_gflop_s = 0;  // f32 multiply-adds on registers, two operations each, all threads
};

Machine measure_machine();
std::string cpu_model();

}  // namespace rivulet::bench
