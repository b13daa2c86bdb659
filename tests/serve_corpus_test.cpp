// The corpus of the fuzz target in every build, the sanitizers' among them, and mutations of it that are the
// same in every run.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "tensor/safetensors.h"
#include "tests/fuzz/live_messages.cpp"

namespace {

std::vector<std::string> corpus() {
  std::vector<std::string> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(RIVULET_SOURCE_DIR "/tests/fuzz/corpus"))
    inputs.push_back(rivulet::read_file(entry.path().string()));
  std::sort(inputs.begin(), inputs.end());
  return inputs;
}

void feed(const std::string& input) {
  CHECK(LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size()) == 0);
}

// Changes a byte, cuts the end off, or repeats a part.
std::string mutated(std::string s, std::mt19937& random) {
  for (uint32_t changes = 1 + random() % 4; changes > 0 && !s.empty(); --changes) {
    const size_t at = random() % s.size();
    switch (random() % 4) {
      case 0:
        s[at] = char(random());
        break;
      case 1:
        s[at] = char(s[at] ^ (1 << random() % 8));
        break;
      case 2:
        s.resize(at);
        break;
      default:
        s.insert(at, s.substr(random() % s.size(), random() % 64));
    }
  }
  return s;
}

}  // namespace

TEST_CASE("fuzz corpus: every input is survived") {
  const auto inputs = corpus();
  CHECK(inputs.size() >= 13);
  for (const std::string& input : inputs) feed(input);
}

TEST_CASE("fuzz corpus: so are 20,000 mutations") {
  const auto inputs = corpus();
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) feed(mutated(inputs[random() % inputs.size()], random));
}
