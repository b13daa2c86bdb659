// Every op in ops/all.h on the GPU against the CPU in f64, forward and backward, in f32 and bf16, on the
// check shapes and views of them and on the benchmark's shapes. One op: cuda_parity_test -sc=rms_norm
#include <doctest/doctest.h>

#include <cstdio>

#include "ops/all.h"
#include "ops/parity.h"
#include "tensor/cuda.h"

using namespace rivulet;

namespace {

void check_all(bool bench) {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  if constexpr (kHasCuda) std::printf("on %s\n", cuda::device_name().c_str());
  std::printf("%-22s %-5s %-6s %9s %9s %6s\n", "op", "dtype", "shapes", "forward", "backward", "s");
  for (const OpCase* op : all_op_cases()) SUBCASE(op->name.c_str()) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const ParityRow row = check_parity(*op, Device::cuda, dtype, bench);
        std::printf("%s\n", to_string(row).c_str());
        std::fflush(stdout);
        CHECK_MESSAGE(row.passed(), to_string(row));
      }
    }
}

}  // namespace

TEST_CASE("the GPU agrees with the CPU on check shapes") { check_all(false); }
TEST_CASE("the GPU agrees with the CPU on benchmark shapes") { check_all(true); }
