// Parity with the reference, on the small files kept in tests/golden.
#include <doctest/doctest.h>

#include "models/golden.h"

using namespace rivulet;

static void check_golden(const std::string& name, size_t rows) {
  const auto table = run_golden(SafeTensors(std::string(RIVULET_GOLDEN_DIR) + "/" + name));
  REQUIRE(table.size() == rows);
  for (const GoldenRow& row : table) {
    CAPTURE(row.what);
    CAPTURE(row.worst_name);
    CHECK(row.compared > 0);
    CHECK(row.worst <= row.tolerance);
  }
}

TEST_CASE("streaming transformer: every network call and the final latents") {
  check_golden("dit_streaming_a.safetensors", 2);
}
TEST_CASE("bidirectional transformer: output, blocks, loss and gradients") {
  check_golden("dit_bidirectional_a.safetensors", 4);
}
TEST_CASE("text encoder: both kinds of attention") { check_golden("gemma2_a.safetensors", 2); }
TEST_CASE("a wrong weight is noticed") {
  const SafeTensors file(std::string(RIVULET_GOLDEN_DIR) + "/dit_streaming_a.safetensors");
  file.get("weights.blocks.1.attn.dt_bias").data<float>()[0] += 1;  // the mapping is private
  const auto table = run_golden(file);
  CHECK(table[0].worst > 10 * table[0].tolerance);
}
