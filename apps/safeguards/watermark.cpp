#include "apps/safeguards/watermark.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "apps/safeguards/convolutional.h"
#include "apps/safeguards/digest.h"

namespace rivulet {
namespace {

constexpr size_t kPayloadBits = 64, kCheckBits = 26, kBits = kPayloadBits + kCheckBits;
constexpr size_t kBlocks = BlockWaves::kBlocks;
static_assert(coded_bits(kBits) == kBlocks);
constexpr double kRounding = 1.0 / 12;  // mean square error of rounding to whole grey levels

std::vector<float> luma_of(const uint8_t* rgb, int64_t pixels) {
  std::vector<float> y(static_cast<size_t>(pixels));
  for (size_t i = 0; i < y.size(); ++i)
    y[i] = 0.2126f * float(rgb[3 * i]) + 0.7152f * float(rgb[3 * i + 1]) + 0.0722f * float(rgb[3 * i + 2]);
  return y;
}

void check_frames(const Tensor& frames) {
  check(frames.defined() && frames.dims() == 4 && frames.dim(3) == 3 && frames.dtype() == DType::u8,
        "watermark: frames have to be u8 [F, H, W, 3]");
}

}  // namespace

Watermark::Watermark(const std::string& key, double psnr) : key_(key) {
  check(!key.empty(), "watermark: the key is empty");
  check(psnr >= 42 && psnr <= 60, "watermark: psnr is ", psnr, ", not in 42..60");
  allowed_ = 255.0 * 255.0 / std::pow(10.0, psnr / 10) - kRounding;
  step_ = std::sqrt(12 * allowed_);
  KeyedStream random(key, "blocks");
  for (size_t i = 0; i < kBlocks; ++i) {
    order_.push_back(i);
    flip_.push_back(char(random.below(2)));
  }
  for (size_t i = kBlocks; i > 1; --i) std::swap(order_[i - 1], order_[random.below(uint32_t(i))]);
}

std::shared_ptr<const BlockWaves> Watermark::waves(const FrameSize& size) const {
  const std::lock_guard lock(mutex_);
  if (!last_ || last_->height() != size.height || last_->width() != size.width)
    last_ = std::make_shared<const BlockWaves>(size.height, size.width);
  return last_;
}

std::vector<char> Watermark::code_of(uint64_t payload) const {
  const uint64_t tag = leading_64(hmac_sha256(key_, "payload " + hex_64(payload)));
  Bits bits;
  for (size_t i = 0; i < kPayloadBits; ++i) bits.push_back(char(payload >> (63 - i) & 1));
  for (size_t i = 0; i < kCheckBits; ++i) bits.push_back(char(tag >> (63 - i) & 1));
  const Bits coded = encode_convolutional(bits);
  std::vector<char> code(kBlocks);
  for (size_t b = 0; b < kBlocks; ++b) code[b] = char(coded[order_[b]] ^ flip_[b]);
  return code;
}

void Watermark::mark_frame(const BlockWaves& waves, const std::vector<char>& code, uint8_t* rgb) const {
  const int64_t pixels = waves.height() * waves.width();
  std::vector<float> moves = waves.analyse(luma_of(rgb, pixels));
  double error = 0;
  for (size_t b = 0; b < kBlocks; ++b) {
    const double a = moves[b], offset = (code[b] ? 0.5 : -0.5) * step_;
    const double move = offset + 2 * step_ * std::round((a - offset) / (2 * step_)) - a;
    error += move * move / 4 / double(kBlocks);
    moves[b] = float(move);
  }
  const auto share = float(std::min(1.0, std::sqrt(allowed_ / std::max(error, 1e-9))));
  for (float& m : moves) m *= share;
  const std::vector<float> change = waves.synthesise(moves);
  for (size_t i = 0; i < change.size(); ++i) {
    const int d = int(std::lrint(change[i]));
    for (size_t c = 3 * i; c < 3 * i + 3; ++c) rgb[c] = uint8_t(std::clamp(int(rgb[c]) + d, 0, 255));
  }
}

Tensor Watermark::mark(const Tensor& frames, uint64_t payload) const {
  check_frames(frames);
  const Tensor marked = frames.clone();
  const auto blocks = waves(size_of_frames(frames));
  const std::vector<char> code = code_of(payload);
  const int64_t bytes = 3 * blocks->height() * blocks->width();
  for (int64_t f = 0; f < frames.dim(0); ++f) mark_frame(*blocks, code, marked.data<uint8_t>() + f * bytes);
  return marked;
}

void Watermark::gather(const Tensor& frames, MarkEvidence& evidence) const {
  check_frames(frames);
  const Tensor dense = frames.contiguous();
  const auto blocks = waves(size_of_frames(frames));
  const int64_t pixels = blocks->height() * blocks->width();
  evidence.soft.resize(kBlocks, 0.f);
  for (int64_t f = 0; f < frames.dim(0); ++f) {
    const auto amplitudes = blocks->analyse(luma_of(dense.data<uint8_t>() + f * pixels * 3, pixels));
    for (size_t b = 0; b < kBlocks; ++b)
      evidence.soft[b] += float(std::sin(std::numbers::pi * amplitudes[b] / step_));
  }
  evidence.frames += frames.dim(0);
}

std::optional<MarkReading> Watermark::read(const MarkEvidence& evidence) const {
  if (evidence.frames == 0) return std::nullopt;
  std::vector<float> soft(kBlocks);
  for (size_t b = 0; b < kBlocks; ++b) soft[order_[b]] = flip_[b] ? -evidence.soft[b] : evidence.soft[b];
  const Bits bits = decode_convolutional(soft, kBits);
  uint64_t payload = 0;
  for (size_t i = 0; i < kPayloadBits; ++i) payload = payload << 1 | uint64_t(bits[i]);
  const uint64_t tag = leading_64(hmac_sha256(key_, "payload " + hex_64(payload)));
  for (size_t i = 0; i < kCheckBits; ++i)
    if (bits[kPayloadBits + i] != char(tag >> (63 - i) & 1)) return std::nullopt;

  const std::vector<char> code = code_of(payload);
  double agreeing = 0, all = 0, wrong = 0;
  for (size_t b = 0; b < kBlocks; ++b) {
    const double strength = std::abs(evidence.soft[b]);
    const bool agrees = (evidence.soft[b] > 0) == (code[b] != 0);
    all += strength;
    agreeing += agrees ? strength : 0;
    wrong += !agrees;
  }
  return MarkReading{payload, all > 0 ? agreeing / all : 0, wrong / double(kBlocks)};
}

}  // namespace rivulet
