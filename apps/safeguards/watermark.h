// An invisible, keyed mark of 64 bits in the luma of every frame.
//
// Where: one wave in each of 16 x 9 blocks (block_waves.h), whose amplitude a carries one coded bit. The key
// says which block carries which bit and with which sign.
// How: a is moved to the nearest point of a lattice of spacing 2 * step, offset by +step/2 for a 1 and
// -step/2 for a 0 (quantisation index modulation, Chen and Wornell 2001), so the picture itself does not
// disturb the reader, who adds up sin(pi a / step) over frames. A move of m adds m^2 / 4 to the block's mean
// square error and moves are spread evenly over -step .. step: the wanted PSNR gives the step. What: payload
// (64 bits) and the first 26 bits of HMAC-SHA256(key, payload), in a convolutional code of rate 2/3 read by
// soft Viterbi decoding (convolutional.h): 144 bits. By design a picture without a mark of this key reads as
// marked with probability 2^-26 = 1.5e-8 per reading. It survives scaling and compression; it does not
// survive cropping, rotation or mirroring.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "apps/frames.h"
#include "apps/safeguards/block_waves.h"

namespace rivulet {

// What a reader gathers over frames of a stream.
struct MarkEvidence {
  std::vector<float> soft;  // one sum for each block
  int64_t frames = 0;
};

struct MarkReading {
  uint64_t payload;
  double confidence;  // share of the evidence that agrees with the payload: 1 without any damage
  double bit_errors;  // share of the coded bits that were corrected
};

class Watermark {
 public:
  // psnr: of the luma of a marked frame against the unmarked, at least so many dB (42..60). The reader needs
  // the same number.
  explicit Watermark(const std::string& key, double psnr = 42);

  // Whether frames of this size can carry a mark: 64x36, or 36x64.
  static bool fits(const FrameSize& size) { return BlockWaves::fit(size.height, size.width); }
  // A marked copy of frames u8 [F, H, W, 3]. Any thread.
  Tensor mark(const Tensor& frames, uint64_t payload) const;

  // Any frames of one mark can be gathered together, at any size that fits.
  void gather(const Tensor& frames, MarkEvidence& evidence) const;
  // Nothing when there is no mark of this key.
  std::optional<MarkReading> read(const MarkEvidence& evidence) const;

 private:
  std::vector<char> code_of(uint64_t payload) const;  // for each block
  std::shared_ptr<const BlockWaves> waves(const FrameSize& size) const;
  void mark_frame(const BlockWaves& waves, const std::vector<char>& code, uint8_t* rgb) const;

  std::string key_;
  double allowed_, step_;      // mean square error; in grey levels
  std::vector<size_t> order_;  // the coded bit in each block
  std::vector<char> flip_;     // whether it is turned over there
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const BlockWaves> last_;  // tables of the last frame size
};

}  // namespace rivulet
