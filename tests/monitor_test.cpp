// The monitors: flashing by the general-flash rule, black, frozen and drifted pictures.
#include "apps/safeguards/monitor.h"
#include "apps/safeguards/config.h"
#include "tests/video_fixtures.h"

using namespace rivulet;

namespace {

constexpr int kColumns = 12, kRows = 6;

// The largest share found over `seconds` of a square wave between two luminances on the first `cells` cells.
double flash_share(const MonitorConfig& c, double per_second, float low, float high, int cells,
                   double fps = 30, double seconds = 3) {
  FlashMeter meter(c, kColumns, kRows);
  double most = 0;
  for (int f = 0; f < int(seconds * fps); ++f) {
    const bool bright = int(std::floor(2 * per_second * (f + 0.5) / fps)) % 2 == 1;
    std::vector<float> picture(kColumns * kRows, 0.5f);
    std::fill_n(picture.begin(), cells, bright ? high : low);
    most = std::max(most, meter.add(picture, 1 / fps));
  }
  return most;
}

bool has(const std::vector<Alarm>& alarms, Trouble kind) {
  for (const Alarm& a : alarms)
    if (a.kind == kind) return true;
  return false;
}

Tensor level(int64_t frames, double value) { return full({frames, 72, 128, 3}, value, DType::u8); }

}  // namespace

TEST_CASE("flash: three a second are allowed, more are not") {
  const MonitorConfig c;
  const int all = kColumns * kRows;
  CHECK(flash_share(c, 2, 0, 1, all) == 0);
  CHECK(flash_share(c, 3, 0, 1, all) == 0);
  CHECK(flash_share(c, 4, 0, 1, all) == 1);
  CHECK(flash_share(c, 10, 0, 1, all) == 1);
  CHECK(flash_share(c, 15, 0, 1, all) == 1);  // every frame another
}

TEST_CASE("flash: the change of luminance and the darker picture decide") {
  const MonitorConfig c;
  const int all = kColumns * kRows;
  CHECK(flash_share(c, 6, 0.50f, 0.58f, all) == 0);
  CHECK(flash_share(c, 6, 0.50f, 0.61f, all) == 1);
  CHECK(flash_share(c, 6, 0.82f, 1.00f, all) == 0);
  CHECK(flash_share(c, 6, 0.78f, 0.90f, all) == 1);
}

TEST_CASE("flash: the area counts, in the picture or in any field of it") {
  MonitorConfig c;
  CHECK(flash_share(c, 6, 0, 1, 18) == doctest::Approx(0.25));
  CHECK(flash_share(c, 6, 0, 1, 6) == doctest::Approx(6.0 / 72));
  c.flash_field = 1.0 / 3;  // 4 x 2 cells
  CHECK(flash_share(c, 6, 0, 1, 3) == doctest::Approx(3.0 / 8));
}

TEST_CASE("flash: a slow ramp, a single cut and noise pass") {
  const MonitorConfig c;
  FlashMeter meter(c, kColumns, kRows);
  double most = 0;
  for (int f = 0; f < 300; ++f) {
    std::vector<float> picture(kColumns * kRows, 0.5f + 0.4f * float(std::sin(f / 30.0)));
    for (size_t i = 0; i < picture.size(); ++i)
      picture[i] += 0.04f * float((i * 7 + size_t(f) * 13) % 3) - 0.04f;
    most = std::max(most, meter.add(picture, 1 / 30.0));
  }
  CHECK(most == 0);
}

TEST_CASE("monitor: black") {
  Monitor m{MonitorConfig{}};
  const Tensor source = moving_picture(3, 72, 128);
  CHECK(has(m.check(source, level(3, 0), 0.1), Trouble::black));
  CHECK_FALSE(has(m.check(level(3, 0), level(3, 0), 0.1), Trouble::black));  // as the source is
  CHECK(m.check(source, source, 0.1).empty());
}

TEST_CASE("monitor: frozen while the source moves, over chunks") {
  Monitor m{MonitorConfig{}};
  const Tensor source = moving_picture(30, 72, 128);
  const Tensor still = source.slice(0, 0, 1).expand({3, 72, 128, 3}).contiguous();
  int64_t alarmed = -1;
  for (int64_t f = 0; f < 30 && alarmed < 0; f += 3) {
    const Tensor now = source.slice(0, f, f + 3).contiguous();
    if (has(m.check(now, still, 0.1), Trouble::frozen)) alarmed = f;
    m.shown(now, still, 0.1);
  }
  CHECK(alarmed == 15);  // 1.5 s of 10 frames a second are full in the chunk of frames 15 to 17
  Monitor other{MonitorConfig{}};
  for (int64_t f = 0; f < 30; f += 3) {
    CHECK(other.check(still, still, 0.1).empty());  // a still source may stand still
    other.shown(still, still, 0.1);
  }
}

TEST_CASE("monitor: drift is lost structure, not new colours") {
  Monitor m{MonitorConfig{}};
  const Tensor source = moving_picture(2, 72, 128);
  const Tensor inverted = source.clone(), darker = source.clone();
  for (int64_t i = 0; i < source.numel(); ++i) {
    inverted.data<uint8_t>()[i] = uint8_t(255 - source.data<uint8_t>()[i]);
    darker.data<uint8_t>()[i] = uint8_t(source.data<uint8_t>()[i] / 2);
  }
  CHECK(m.check(source, inverted, 0.1).empty());
  CHECK(m.check(source, darker, 0.1).empty());
  CHECK(has(m.check(source, level(2, 90), 0.1), Trouble::drift));
}

TEST_CASE("monitor: check() remembers nothing") {
  Monitor m{MonitorConfig{}};
  const Tensor source = moving_picture(1, 72, 128);
  for (int i = 0; i < 40; ++i)
    CHECK_FALSE(has(m.check(source, level(1, i % 2 ? 250 : 0), 0.1), Trouble::flash));
}
