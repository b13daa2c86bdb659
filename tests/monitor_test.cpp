// The monitors: flashing by the general-flash rule, black, frozen and drifted pictures.
#include "apps/safeguards/monitor.h"
#include "apps/safeguards/config.h"
#include "tests/video_fixtures.h"

using namespace rivulet;

namespace {

constexpr int kColumns = 12, kRows = 6;

LinearColour grey(float luminance) { return {luminance, luminance, luminance}; }

// The largest shares found over three seconds of a square wave between two colours on the first `cells`
// cells.
FlashShares shares(const MonitorConfig& c, double per_second, LinearColour a, LinearColour b, int cells) {
  constexpr double kFps = 30, kSeconds = 3;
  FlashMeter meter(c, kColumns, kRows);
  FlashShares most;
  for (int f = 0; f < int(kSeconds * kFps); ++f) {
    std::vector<LinearColour> picture(kColumns * kRows, grey(0.5f));
    std::fill_n(picture.begin(), cells, int(std::floor(2 * per_second * (f + 0.5) / kFps)) % 2 == 1 ? b : a);
    const FlashShares now = meter.add(picture, 1 / kFps);
    most = {std::max(most.general, now.general), std::max(most.red, now.red)};
  }
  return most;
}

double flash_share(const MonitorConfig& c, double per_second, float low, float high, int cells) {
  return shares(c, per_second, grey(low), grey(high), cells).general;
}

// Red flashes a second, six, of the whole picture.
double red_share_of(LinearColour a, LinearColour b) {
  return shares(MonitorConfig{}, 6, a, b, kColumns * kRows).red;
}

// The mixture of pure red and another colour that lies at `distance` from pure red in the diagram.
LinearColour away_from_red(const LinearColour& other, double distance) {
  const auto red = chromaticity({1, 0, 0});
  double low = 0, high = 1;
  LinearColour mixed{};
  for (int i = 0; i < 60; ++i) {
    const double t = (low + high) / 2;
    mixed = {float(1 - t + t * other[0]), float(t * other[1]), float(t * other[2])};
    const auto at = chromaticity(mixed);
    (std::hypot(at[0] - red[0], at[1] - red[1]) < distance ? low : high) = t;
  }
  return mixed;
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
    std::vector<LinearColour> picture(kColumns * kRows, grey(0.5f + 0.4f * float(std::sin(f / 30.0))));
    for (size_t i = 0; i < picture.size(); ++i)
      picture[i] = grey(picture[i][0] + 0.04f * float((i * 7 + size_t(f) * 13) % 3) - 0.04f);
    most = std::max(most, meter.add(picture, 1 / 30.0).general);
  }
  CHECK(most == 0);
}

TEST_CASE("red flash: the diagram's primaries and white") {
  CHECK(chromaticity({1, 0, 0})[0] == doctest::Approx(0.4507).epsilon(0.001));
  CHECK(chromaticity({1, 0, 0})[1] == doctest::Approx(0.5229).epsilon(0.001));
  CHECK(chromaticity({0, 1, 0})[0] == doctest::Approx(0.1250).epsilon(0.001));
  CHECK(chromaticity({0, 0, 1})[1] == doctest::Approx(0.1579).epsilon(0.001));
  CHECK(chromaticity({0.3f, 0.3f, 0.3f})[0] == doctest::Approx(chromaticity({0, 0, 0})[0]).epsilon(0.001));
}

TEST_CASE("red flash: three a second are allowed, more are not, and luminance has no say") {
  const MonitorConfig c;
  const int all = kColumns * kRows;
  const LinearColour red = {1, 0, 0}, green = {0, 0.2126f / 0.7152f, 0};  // of one luminance
  CHECK(shares(c, 3, red, green, all).red == 0);
  CHECK(shares(c, 4, red, green, all).red == 1);
  CHECK(shares(c, 15, red, green, all).red == 1);
  CHECK(shares(c, 6, red, green, all).general == 0);
  CHECK(shares(c, 6, red, green, 18).red == doctest::Approx(0.25));
  CHECK(shares(c, 6, red, green, 6).red == doctest::Approx(6.0 / 72));
  CHECK(red_share_of(red, grey(1)) == 1);
  CHECK(red_share_of(red, grey(0)) == 1);
  CHECK(red_share_of(grey(0), grey(1)) == 0);
  CHECK(red_share_of({0, 1, 0}, {0, 0, 1}) == 0);
}

TEST_CASE("red flash: the threshold of saturation") {
  const LinearColour blue = {0, 0, 1};
  CHECK(red_share_of({0.8f, 0.2f, 0}, blue) == 1);
  CHECK(red_share_of({0.799f, 0.201f, 0}, blue) == 0);
  CHECK(red_share_of({0.063f, 0, 0}, blue) == 1);  // 20/320 is 0.0625
  CHECK(red_share_of({0.062f, 0, 0}, blue) == 0);
}

TEST_CASE("red flash: the threshold of the change of colour") {
  for (const LinearColour& other : {grey(1), LinearColour{0, 1, 0}, LinearColour{0, 0, 1}}) {
    CHECK(red_share_of({1, 0, 0}, away_from_red(other, 0.202)) == 1);
    CHECK(red_share_of({1, 0, 0}, away_from_red(other, 0.198)) == 0);
  }
}

TEST_CASE("red flash: a picture that turns red once, or slowly, passes") {
  FlashMeter meter(MonitorConfig{}, kColumns, kRows);
  double most = 0;
  for (int f = 0; f < 300; ++f) {
    const float t = 0.5f + 0.5f * float(std::sin(f / 10.0));
    const std::vector<LinearColour> picture(kColumns * kRows, LinearColour{1, 1 - t, 1 - t});
    most = std::max(most, meter.add(picture, 1 / 30.0).red);
  }
  CHECK(most == 0);
}

TEST_CASE("monitor: red flashes of the edit, in pixels") {
  Monitor m{MonitorConfig{}};
  const Tensor source = moving_picture(60, 72, 128), edit = source.clone();
  for (int64_t f = 0; f < 60; ++f)
    for (int64_t i = 0; i < 72 * 128; ++i) {
      uint8_t* p = edit.data<uint8_t>() + (f * 72 * 128 + i) * 3;
      // sRGB green 148 has the luminance of full red.
      p[0] = f / 3 % 2 ? 255 : 0, p[1] = f / 3 % 2 ? 0 : 148, p[2] = 0;
    }
  const auto alarms = m.check(source, edit, 1 / 30.0);
  CHECK(has(alarms, Trouble::red_flash));
  CHECK_FALSE(has(alarms, Trouble::flash));
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
