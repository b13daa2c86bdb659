// The parity check itself, on the CPU: f32 and bf16 results against f64 ones, in poisoned memory.
#include "ops/parity.h"

#include <doctest/doctest.h>

#include <cstdio>

#include "ops/all.h"

using namespace rivulet;

TEST_CASE("the CPU gives its f64 answers in f32 and bf16, whatever the memory held before") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const OpCase* op : all_op_cases()) {
      const ParityRow row = check_parity(*op, Device::cpu, dtype, false);
      std::printf("%s\n", to_string(row).c_str());
      CHECK_MESSAGE(row.passed(), to_string(row));
    }
}

TEST_CASE("a wrong op does not pass") {
  OpCase op = add_case();
  int calls = 0;
  SUBCASE("wrong result") {
    // The first call is the reference's.
    op.run = [&calls](const Tensors& in) -> Tensors {
      return {calls++ == 0 ? add(in[0], in[1]) : sub(in[0], in[1])};
    };
    CHECK(check_parity(op, Device::cpu, DType::f32, false).forward > 0.1);
  }
  SUBCASE("a result that depends on the run") {
    op.run = [&calls](const Tensors& in) -> Tensors {
      return {add(in[0], in[1]) * (1 + 1e-6 * (calls++ % 2))};
    };
    CHECK(check_parity(op, Device::cpu, DType::f32, false).failure.find("other bits") != std::string::npos);
  }
  SUBCASE("a result that is not written") {
    op.run = [&calls](const Tensors& in) -> Tensors {
      return {calls++ == 0 ? add(in[0], in[1]) : empty_like(add(in[0], in[1]))};
    };
    CHECK(!check_parity(op, Device::cpu, DType::f32, false).passed());
  }
  SUBCASE("an exception") {
    op.run = [](const Tensors&) -> Tensors { fail("no such kernel"); };
    CHECK(check_parity(op, Device::cpu, DType::f32, false).failure == "no such kernel");
  }
}
