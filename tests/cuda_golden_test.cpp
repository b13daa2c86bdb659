// The transformer on the GPU against the reference's files: f32 as on the CPU, bf16 within what rounding
// every result costs on the CPU (models/golden.h).
#include <doctest/doctest.h>

#include <cstdio>

#include "models/golden.h"
#include "tensor/cuda.h"

using namespace rivulet;

static void check_golden(const std::string& name, DType dtype) {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  const SafeTensors file(std::string(RIVULET_GOLDEN_DIR) + "/" + name);
  for (const GoldenRow& row : run_golden(file, Device::cuda, dtype)) {
    CAPTURE(row.what);
    CAPTURE(row.worst_name);
    CHECK(row.compared > 0);
    CHECK(row.worst <= row.tolerance);
  }
}

TEST_CASE("streaming transformer in f32") { check_golden("dit_streaming_a.safetensors", DType::f32); }
TEST_CASE("streaming transformer in bf16") { check_golden("dit_streaming_a.safetensors", DType::bf16); }
TEST_CASE("bidirectional transformer in f32") { check_golden("dit_bidirectional_a.safetensors", DType::f32); }
TEST_CASE("bidirectional transformer in bf16") {
  check_golden("dit_bidirectional_a.safetensors", DType::bf16);
}
TEST_CASE("text encoder in f32") { check_golden("gemma2_a.safetensors", DType::f32); }
TEST_CASE("text encoder in bf16") { check_golden("gemma2_a.safetensors", DType::bf16); }
