// The file of chosen matrix product algorithms: what is written is read, anything else is ignored with a
// reason.
#include "ops/gemm_choices.h"

#include <doctest/doctest.h>

#include "fixtures.h"

using namespace rivulet;

namespace {

GemmChoices::Key key_of(int64_t m) {
  GemmChoices::Key key{};
  key[2] = m;
  return key;
}

GemmChoice choice_of(double us) {
  GemmChoice c;
  c.algorithm = {1, 0xffffffffffffffffu, 3, 4, 5, 6, 7, 8};
  c.best_us = us;
  c.first_us = 2 * us;
  c.configuration = {23, 35, 1, 5};
  return c;
}

}  // namespace

TEST_CASE("choices come back from their file, for the same GPU and library alone") {
  const TempDir dir;
  const std::string path = dir / "deeper/gemm.json";
  {
    GemmChoices choices(path, "H100", 130100);
    CHECK(choices.ignored().empty());
    choices.put(key_of(7), choice_of(1.5));
    choices.put(key_of(9), choice_of(2.5));
    choices.save();
  }
  const GemmChoices again(path, "H100", 130100);
  CHECK(again.ignored().empty());
  CHECK(again.all().size() == 2);
  REQUIRE(again.find(key_of(7)) != nullptr);
  CHECK(again.find(key_of(7))->algorithm == choice_of(1.5).algorithm);
  CHECK(again.find(key_of(7))->configuration == choice_of(1.5).configuration);
  CHECK(again.find(key_of(7))->best_us == 1.5);
  CHECK(again.find(key_of(8)) == nullptr);
  for (const auto& [gpu, version] : {std::pair<std::string, int64_t>{"H200", 130100}, {"H100", 130200}}) {
    const GemmChoices other(path, gpu, version);
    CHECK(other.all().empty());
    CHECK(other.ignored().find("H100 and cuBLASLt 130100") != std::string::npos);
  }
}

TEST_CASE("a damaged file counts as absent, is replaced by the next save, and an absent one is no trouble") {
  const TempDir dir;
  const std::string path = dir / "gemm.json";
  for (const char* text : {"", "{", "[]", R"({"kind": "other"})",
                           R"({"kind": "rivulet gemm choices", "format": 1, "gpu": "H100", "cublaslt": 1,
                               "choices": [{"key": [1], "algorithm": [2]}]})"}) {
    CAPTURE(text);
    write_file(path, text);
    GemmChoices choices(path, "H100", 1);
    CHECK(choices.all().empty());
    CHECK(choices.ignored().rfind(path + ": ignored: ", 0) == 0);
    choices.put(key_of(3), choice_of(1));
    choices.save();
    CHECK(GemmChoices(path, "H100", 1).find(key_of(3)) != nullptr);
  }
  CHECK(GemmChoices(dir / "absent.json", "H100", 1).ignored().empty());
}

TEST_CASE("the scope of a thread ends where it ends") {
  GemmChoices outer("", "H100", 1), inner("", "H100", 1);
  CHECK(GemmScope::current().choices == nullptr);
  {
    const GemmScope use(outer);
    {
      const GemmScope use_inner(inner, false);
      CHECK(GemmScope::current().choices == &inner);
      CHECK(!GemmScope::current().time_new);
    }
    CHECK(GemmScope::current().choices == &outer);
  }
  CHECK(GemmScope::current().choices == nullptr);
  outer.put(key_of(1), choice_of(1));
  CHECK_NOTHROW(outer.save());  // without a path there is nothing to write
}
