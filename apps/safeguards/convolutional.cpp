#include "apps/safeguards/convolutional.h"

#include <array>
#include <bit>
#include <limits>

#include "tensor/error.h"

namespace rivulet {
namespace {

constexpr unsigned kMemory = 6, kStates = 1u << kMemory;
constexpr std::array<unsigned, 2> kGenerators = {0133, 0171};

// A window holds the newest bit at the top and the six before it, newest first, below.
unsigned window_of(unsigned state, unsigned bit) { return (bit << kMemory) | state; }
unsigned output(unsigned window, size_t generator) {
  return unsigned(std::popcount(window & kGenerators[generator])) & 1u;
}

// The second output of every other step is left out.
bool is_sent(size_t step, size_t generator) { return generator == 0 || step % 2 == 0; }

}  // namespace

Bits encode_convolutional(const Bits& bits) {
  Bits coded;
  unsigned state = 0;
  for (size_t i = 0; i < bits.size() + kMemory; ++i) {
    const unsigned window = window_of(state, i < bits.size() ? unsigned(bits[i]) : 0);
    for (size_t g = 0; g < kGenerators.size(); ++g)
      if (is_sent(i, g)) coded.push_back(char(output(window, g)));
    state = window >> 1;
  }
  return coded;
}

Bits decode_convolutional(const std::vector<float>& soft, size_t count) {
  const size_t steps = count + kMemory;
  check(soft.size() == coded_bits(count), "convolutional code: ", soft.size(), " values are no code word of ",
        count, " bits");
  size_t at = 0;
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  std::array<float, kStates> score, next;
  score.fill(kNever);
  score[0] = 0;
  std::vector<std::array<unsigned char, kStates>> from(steps);
  for (size_t t = 0; t < steps; ++t) {
    next.fill(kNever);
    std::array<float, 2> value = {};
    for (size_t g = 0; g < value.size(); ++g)
      if (is_sent(t, g)) value[g] = soft[at++];
    const unsigned inputs = t < steps - kMemory ? 2 : 1;  // the tail is zeros
    for (unsigned state = 0; state < kStates; ++state)
      for (unsigned bit = 0; bit < inputs; ++bit) {
        const unsigned window = window_of(state, bit);
        float s = score[state];
        for (size_t g = 0; g < kGenerators.size(); ++g) s += output(window, g) ? value[g] : -value[g];
        if (s > next[window >> 1]) {
          next[window >> 1] = s;
          from[t][window >> 1] = static_cast<unsigned char>(state);
        }
      }
    score = next;
  }
  Bits bits(count);
  unsigned state = 0;
  for (size_t t = steps; t-- > 0;) {
    if (t < bits.size()) bits[t] = char(state >> (kMemory - 1));
    state = from[t][state];
  }
  return bits;
}

}  // namespace rivulet
