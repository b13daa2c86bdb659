// The watermark: its code, its keys, what it costs the picture, and what it survives.
#include <random>

#include "apps/frames.h"
#include "apps/safeguards/config.h"
#include "apps/safeguards/convolutional.h"
#include "apps/safeguards/digest.h"
#include "apps/safeguards/watermark.h"
#include "apps/video.h"
#include "tests/edit_fixtures.h"

using namespace rivulet;

namespace {

constexpr uint64_t kPayload = 0x0123456789abcdefull;
const char* const kClip = RIVULET_SOURCE_DIR "/apps/demo/city.mp4";

Tensor clip_frames(int64_t n, const FrameSize& size = {256, 144}) {
  return open_source(kClip, {.size = size, .image_rate = {}})->read(n);
}

std::optional<MarkReading> read_frames(const Watermark& mark, const Tensor& frames) {
  MarkEvidence evidence;
  mark.gather(frames, evidence);
  return mark.read(evidence);
}

double luma_psnr(const Tensor& a, const Tensor& b) {
  double sum = 0;
  const uint8_t *x = a.data<uint8_t>(), *y = b.data<uint8_t>();
  for (int64_t i = 0; i < a.numel(); i += 3) {
    const double d = 0.2126 * (x[i] - y[i]) + 0.7152 * (x[i + 1] - y[i + 1]) + 0.0722 * (x[i + 2] - y[i + 2]);
    sum += d * d;
  }
  return 10 * std::log10(255.0 * 255.0 * double(a.numel() / 3) / sum);
}

}  // namespace

TEST_CASE("digests are the standard ones") {
  CHECK(hex(sha256("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  // RFC 4231, test case 2.
  CHECK(hex(hmac_sha256("Jefe", "what do ya want for nothing?")) ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  CHECK(hex_64(kPayload) == "0123456789abcdef");
}

TEST_CASE("convolutional code: any two wrong bits, and bursts, are corrected") {
  std::mt19937 random(1);
  Bits bits(90);
  for (char& b : bits) b = char(random() & 1);
  const Bits code = encode_convolutional(bits);
  REQUIRE(code.size() == coded_bits(bits.size()));
  std::vector<float> soft;
  for (char c : code) soft.push_back(c ? 1.f : -1.f);
  CHECK(decode_convolutional(soft, bits.size()) == bits);
  // Free distance 6: two hard errors anywhere.
  for (size_t i = 0; i < soft.size(); ++i)
    for (size_t j : {i + 1, i + 2, i + 5, i + 11}) {
      std::vector<float> noisy = soft;
      noisy[i] = -noisy[i];
      if (j < noisy.size()) noisy[j] = -noisy[j];
      REQUIRE(decode_convolutional(noisy, bits.size()) == bits);
    }
  CHECK_THROWS_AS(decode_convolutional(std::vector<float>(7), 90), Error);
}

TEST_CASE("watermark: every frame reads back, and stays above the promised PSNR") {
  const Tensor frames = clip_frames(8);
  for (const double psnr : {42.0, 48.0}) {
    const Watermark mark("a key", psnr);
    const Tensor marked = mark.mark(frames, kPayload);
    for (int64_t f = 0; f < frames.dim(0); ++f) {
      const Tensor one = marked.slice(0, f, f + 1);
      CHECK(luma_psnr(frames.slice(0, f, f + 1), one.contiguous()) >= psnr);
      const auto found = read_frames(mark, one);
      REQUIRE(found);
      CHECK(found->payload == kPayload);
      CHECK(found->confidence > 0.95);
    }
    CHECK_FALSE(read_frames(mark, frames));
    CHECK_FALSE(read_frames(Watermark("another key", psnr), marked));
  }
}

TEST_CASE("watermark: black, white and portrait pictures; small ones are refused") {
  const Watermark mark("key");
  for (const double level : {0.0, 255.0, 128.0}) {
    const Tensor flat = full({1, 144, 256, 3}, level, DType::u8);
    CHECK_FALSE(read_frames(mark, flat));
    CHECK(luma_psnr(flat, mark.mark(flat, kPayload)) >= 42);
  }
  const Tensor tall = clip_frames(1).permute({0, 2, 1, 3}).contiguous();
  const auto found = read_frames(mark, mark.mark(tall, kPayload));
  REQUIRE(found);
  CHECK(found->payload == kPayload);
  CHECK_FALSE(Watermark::fits({60, 40}));
  CHECK_THROWS_AS(mark.mark(zeros({1, 40, 60, 3}, DType::u8), 1), Error);
  CHECK_THROWS_AS(Watermark("key", 30), Error);
  CHECK_THROWS_AS(Watermark("", 42), Error);
}

TEST_CASE("watermark: half the size reads from one frame") {
  const Watermark mark("key");
  const Tensor marked = mark.mark(clip_frames(3), kPayload);
  const Tensor half = resize_frames(marked, {128, 72});
  for (int64_t f = 0; f < 3; ++f) {
    const auto found = read_frames(mark, half.slice(0, f, f + 1));
    REQUIRE(found);
    CHECK(found->payload == kPayload);
  }
}

TEST_CASE("watermark: H.264 at CRF 28, with and without half the size, through the program") {
  NEEDS_FFMPEG();
  TempDir dir;
  const Watermark mark(default_safeguards().mark.key, default_safeguards().mark.psnr);
  const Tensor marked = mark.mark(clip_frames(72), kPayload);
  VideoInfo info;
  info.size = {256, 144};
  const auto sink = open_sink(dir / "m.y4m", info);
  sink->write(marked);
  sink->finish();
  for (const char* scale : {"null", "scale=iw/2:ih/2"}) {
    CAPTURE(scale);
    ffmpeg({"-i", dir / "m.y4m", "-vf", scale, "-c:v", "libx264", "-crf", "28", dir / "out.mp4"});
    const Outcome read = run_program({RIVULET_BIN, "provenance", dir / "out.mp4"});
    CHECK(read.code == 0);
    CHECK(read.out.find("payload 0123456789abcdef") != std::string::npos);
  }
  const Outcome clean = run_program({RIVULET_BIN, "provenance", kClip});
  CHECK(clean.code == 1);
  CHECK(clean.out.find("no mark") != std::string::npos);
}
