// The convolutional code of the watermark: constraint length 7, generators 133 and 171 (octal), every fourth
// output bit left out: rate 2/3, free distance 6. Ended by six zeros: n bits become 3/2 (n + 6).
#pragma once

#include <cstddef>
#include <vector>

namespace rivulet {

using Bits = std::vector<char>;  // of 0 and 1

constexpr size_t coded_bits(size_t bits) { return (bits + 6) + (bits + 7) / 2; }
Bits encode_convolutional(const Bits& bits);
// The likeliest `bits` bits (Viterbi). soft: one value for each coded bit, above 0 for 1, larger for surer.
Bits decode_convolutional(const std::vector<float>& soft, size_t bits);

}  // namespace rivulet
