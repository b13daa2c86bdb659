// An invisible, keyed mark of 64 bits in the luma of every frame.
//
// Where: the luma of a frame is projected on cosines of the whole frame,
//   F(i, j) = 2 / sqrt(H W) * sum over y, x of Y(y, x) cos(pi j (y + 1/2) / H) cos(pi i (x + 1/2) / W) *
//   scale,
// counted in half waves per frame side, so that another size of the same picture has the same coefficients.
// Coefficients of a band of middle frequencies are dealt out by the key to kCoded groups; each group has a
// keyed direction (signs), and its projection p on it carries one coded bit. How: p is moved towards the
// nearest point of a lattice of spacing 2 * step, offset by +-step / 2 as the bit says (dithered quantisation
// of a projection, "spread-transform dither modulation", Chen and Wornell 2001). The host picture does not
// disturb the reader, who measures sin(pi p / step) and adds it up over frames. What: payload (64 bits),
// CRC-32 mixed with the key (32 bits), a convolutional code of rate 1/3 and constraint length 7 (octal 133,
// 171, 165, ended by 6 zeros) read by soft Viterbi decoding: kCoded = 306 bits. By design a clean picture
// passes for a marked one with probability 2^-32 per reading (the CRC). It survives scaling and compression;
// it does not survive cropping, rotation or mirroring.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

// What a reader gathers over frames of a stream.
struct MarkEvidence {
  std::vector<float> soft;  // one sum per coded bit
  int64_t frames = 0;
};

struct MarkReading {
  uint64_t payload;
  double confidence;  // share of the evidence that agrees with the payload, 0..1; 0.5 would be chance
  double bit_errors;  // share of the coded bits that were corrected
};

class Watermark {
 public:
  static constexpr int kCoded = 306;

  // psnr: of a marked frame's luma against the unmarked, at least so many dB (42..60).
  Watermark(const std::string& key, double psnr);
  ~Watermark();

  // Frames u8 [F, H, W, 3], each side at least 64, to a marked copy. The payload's code is the same in every
  // frame: any frames of a stream can be read together.
  Tensor mark(const Tensor& frames, uint64_t payload) const;

  void gather(const Tensor& frames, MarkEvidence& evidence) const;
  // Nothing when there is no mark of this key.
  std::optional<MarkReading> read(const MarkEvidence& evidence) const;

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
  double psnr_;
};

}  // namespace rivulet
