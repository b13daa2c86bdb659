// Child processes, and video in and out: what was written comes back, with its size, rate and sound.
#include "apps/video.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "ops/image_io.h"
#include "tensor/safetensors.h"
#include "tests/video_fixtures.h"

using namespace rivulet;
namespace fs = std::filesystem;

namespace {

VideoInfo info_of(const Tensor& frames, Rational fps = {}) {
  return {.size = size_of_frames(frames), .fps = fps, .frames = -1, .audio = {}, .audio_offset = 0};
}

void write_clip(const std::string& path, const Tensor& frames, const VideoInfo& info) {
  const auto sink = open_sink(path, info);
  for (int64_t at = 0; at < frames.dim(0); at += 7)
    sink->write(frames.slice(0, at, std::min(at + 7, frames.dim(0))));
  CHECK(sink->finish() == "");
}

Tensor read_clip(const std::string& path, const SourceOptions& options = {}) {
  const auto source = open_source(path, options);
  const Tensor frames = source->read(1000);
  REQUIRE(frames.defined());
  CHECK(!source->read(1));
  return frames;
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

double mean_of(const Tensor& frames, int64_t top, int64_t left, int64_t height, int64_t width, int channel) {
  const auto v =
      frames.slice(1, top, top + height).slice(2, left, left + width).select(3, channel).to_vector();
  double sum = 0;
  for (double x : v) sum += x;
  return sum / double(v.size());
}

}  // namespace

TEST_CASE("process: output, exit code and last words") {
  CHECK(run_for_output({"printf", "%s|%s", "a b", "$HOME"}) == "a b|$HOME");  // no shell in between
  Process bad({"ls", "/no/such/folder"}, Pipes::none);
  CHECK(bad.wait() == 2);
  CHECK(contains(bad.last_words(), "/no/such/folder"));
  CHECK(contains(error_of([] { run_for_output({"ls", "/no/such/folder"}); }), "/no/such/folder"));
  CHECK(contains(error_of([] { Process({"no-such-program"}, Pipes::none); }),
                 "no-such-program is not installed"));
}

TEST_CASE("process: both pipes, more than they hold") {
  Process cat({"cat"}, Pipes::both);
  const std::string text(50'000, 'x');
  CHECK(cat.write(text.data(), int64_t(text.size())));
  cat.close_input();
  std::string back(60'000, '\0');
  CHECK(cat.read(back.data(), int64_t(back.size())) == 50'000);
  CHECK(back.substr(0, 50'000) == text);
  CHECK(cat.wait() == 0);
}

TEST_CASE("process: a chatty child does not block, and the end of what it said is kept") {
  std::vector<std::string> argv = {"ls"};
  for (int i = 0; i < 5000; ++i) argv.push_back("/no/such/folder/" + std::to_string(i));
  Process child(argv, Pipes::none);
  CHECK(child.wait() == 2);
  CHECK(contains(child.last_words(), "/no/such/folder/4999"));
  CHECK(child.last_words().size() < 20'000);
}

TEST_CASE("process: writing to a child that is gone is an answer, not a signal") {
  Process child({"true"}, Pipes::input);
  const std::string text(1 << 20, 'x');
  CHECK_FALSE(child.write(text.data(), int64_t(text.size())));
  CHECK(child.wait() == 0);
}

TEST_CASE("process: the destructor ends the child") {
  pid_t pid = 0;
  const auto begin = std::chrono::steady_clock::now();
  {
    Process child({"sleep", "100"}, Pipes::none);
    pid = child.pid();
    CHECK(::kill(pid, 0) == 0);
  }
  CHECK(::kill(pid, 0) == -1);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
}

TEST_CASE("process: descriptors stay here, on both sides") {
  const auto count = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const int leaky = ::open("/dev/null", O_RDONLY);  // without close-on-exec
  REQUIRE(leaky > 2);
  const auto before = count();
  for (int i = 0; i < 20; ++i) {
    // The child sees its three streams and the folder it lists.
    const std::string seen = run_for_output({"ls", "/proc/self/fd"});
    CHECK(seen == "0\n1\n2\n3\n");
    error_of([] { Process({"no-such-program"}, Pipes::both); });
  }
  CHECK(count() == before);
  ::close(leaky);
}

TEST_CASE("y4m: a round trip at any size keeps everything but rounding") {
  const TempDir dir;
  for (const auto& [h, w] : {std::pair{48, 64}, {27, 33}, {1, 1}}) {
    const Tensor frames = moving_picture(9, h, w);
    write_clip(dir / "a.y4m", frames, info_of(frames, {30000, 1001}));
    const auto source = open_source(dir / "a.y4m");
    CHECK(source->info().frames == 9);
    CHECK(source->info().fps.num == 30000);
    CHECK(source->info().fps.den == 1001);
    CHECK(psnr(source->read(20), frames) > 45);
    CHECK_FALSE(fs::exists(dir / "a.partial.y4m"));
  }
}

TEST_CASE("y4m: chroma of every subsampling is put back where it was taken") {
  const TempDir dir;
  constexpr int64_t kW = 63, kH = 35;
  const auto wave = [](double x, double y, int c) {
    return 128 + 50 * std::sin((x + (c + 1) * y) / 15 + 2 * c);
  };
  const auto byte = [](double v) { return uint8_t(std::lround(std::clamp(v, 0.0, 255.0))); };
  Tensor expected({kH, kW, 3}, DType::u8);
  for (int64_t y = 0; y < kH; ++y)
    for (int64_t x = 0; x < kW; ++x) {
      const double l = (wave(double(x), double(y), 0) - 16) / 219;
      const double u = (wave(double(x), double(y), 1) - 128) / 224,
                   v = (wave(double(x), double(y), 2) - 128) / 224;
      uint8_t* p = expected.data<uint8_t>() + (y * kW + x) * 3;
      p[0] = byte(255 * (l + 1.402 * v));
      p[1] = byte(255 * (l - 0.344136 * u - 0.714136 * v));
      p[2] = byte(255 * (l + 1.772 * u));
    }
  for (const auto& [format, sx, sy] :
       {std::tuple{std::string("C420jpeg"), 2, 2}, {"C420mpeg2", 2, 2}, {"C422", 2, 1}, {"C444", 1, 1}}) {
    CAPTURE(format);
    std::string bytes = "YUV4MPEG2 W63 H35 F25:1 " + format + "\nFRAME\n";
    for (int c = 0; c < 3; ++c) {
      const int px = c == 0 ? 1 : sx, py = c == 0 ? 1 : sy;
      for (int64_t y = 0; y < (kH + py - 1) / py; ++y)
        for (int64_t x = 0; x < (kW + px - 1) / px; ++x)
          bytes += char(byte(wave(double(x * px), double(y * py) + (py - 1) / 2.0, c)));
    }
    write_file(dir / "a.y4m", bytes);
    CHECK(psnr(read_clip(dir / "a.y4m").select(0, 0), expected) > 45);  // chroma off by half a row gives 35
  }
}

TEST_CASE("y4m: colours and ranges agree with ffmpeg's own conversion") {
  NEEDS_FFMPEG();
  const TempDir dir;
  const std::string picture =
      "nullsrc=size=63x35:rate=5:duration=1,format=yuv444p,"
      "geq=lum='128+80*sin(X/7+N)':cb='128+60*sin((X+Y)/9)':cr='128+60*cos(Y/8-N)',format=";
  for (const std::string format : {"yuv444p", "yuvj444p", "gray"}) {
    CAPTURE(format);
    ffmpeg({"-f", "lavfi", "-i", picture + format, "-strict", "-1", dir / "a.y4m"});
    ffmpeg({"-i", dir / "a.y4m", "-vf", "scale=flags=bicubic+accurate_rnd+full_chroma_int", dir / "f%d.png"});
    const Tensor ours = read_clip(dir / "a.y4m");
    REQUIRE(ours.dim(0) == 5);
    for (int i = 0; i < 5; ++i)
      CHECK(psnr(ours.select(0, i), read_image(dir / ("f" + std::to_string(i + 1) + ".png"))) > 50);
  }
}

TEST_CASE("y4m: damaged streams are named") {
  const TempDir dir;
  const auto reading = [&](const std::string& bytes) {
    write_file(dir / "a.y4m", bytes);
    return error_of([&] { open_source(dir / "a.y4m")->read(100); });
  };
  const std::string head = "YUV4MPEG2 W4 H2 F25:1 C444\n", frame = "FRAME\n" + std::string(24, 'x');
  CHECK(reading(head + frame) == "");
  CHECK(contains(reading(head + frame + "FRAME\nxxx"), "a.y4m: ends in the middle of frame 2"));
  CHECK(contains(reading(head + frame + "GARBAGE\n"), "damaged after frame 1"));
  CHECK(contains(reading("RIFF....\n"), "not a y4m stream"));
  CHECK(contains(reading("YUV4MPEG2 W4 F25:1\n"), "no frame size"));
  CHECK(contains(reading("YUV4MPEG2 W999999999 H99999999 F25:1\n"), "larger than"));
  CHECK(contains(reading("YUV4MPEG2 W4 H2 F25:1 C420p10\n"), "C420p10 is not supported"));
  CHECK(contains(reading("YUV4MPEG2 Wfour H2 F25:1\n"), "Wfour"));
  CHECK(contains(reading(std::string(5000, 'y')), "not a y4m stream"));
}

TEST_CASE("mp4: a round trip keeps picture, frame count and rate") {
  NEEDS_FFMPEG();
  const TempDir dir;
  const Tensor frames = moving_picture(40, 96, 128);
  write_clip(dir / "a.mp4", frames, info_of(frames, {30000, 1001}));
  CHECK_FALSE(fs::exists(dir / "a.partial.mp4"));
  CHECK(fs::directory_iterator(dir.path)->path() == dir / "a.mp4");
  const auto source = open_source(dir / "a.mp4");
  CHECK(source->info().fps.num == 30000);
  CHECK(source->info().fps.den == 1001);
  CHECK(source->info().frames == 40);
  CHECK(source->info().audio == "");
  CHECK(psnr(source->read(100), frames) > 35);
  CHECK(probe_value(dir / "a.mp4", "start_time") == "0.000000");
  CHECK(probe_value(dir / "a.mp4", "pix_fmt") == "yuv420p");
}

TEST_CASE("mp4: odd sides lose their last row or column") {
  NEEDS_FFMPEG();
  const TempDir dir;
  const Tensor frames = moving_picture(3, 35, 63);
  write_clip(dir / "a.mp4", frames, info_of(frames));
  CHECK(psnr(read_clip(dir / "a.mp4"), frames.slice(1, 0, 34).slice(2, 0, 62)) > 33);
}

TEST_CASE("mp4: what is written before an end without finish() is playable under the temporary name") {
  NEEDS_FFMPEG();
  const TempDir dir;
  const Tensor frames = moving_picture(30, 48, 64);
  {
    const auto sink = open_sink(dir / "a.mp4", info_of(frames));
    sink->write(frames);
    CHECK(sink->partial() == dir / "a.partial.mp4");
  }
  CHECK_FALSE(fs::exists(dir / "a.mp4"));
  CHECK(read_clip(dir / "a.partial.mp4").dim(0) == 30);
  { const auto sink = open_sink(dir / "b.mp4", info_of(frames)); }
  CHECK_FALSE(fs::exists(dir / "b.partial.mp4"));
}

TEST_CASE("mp4: the sound of the source stays, as long as the pictures last") {
  NEEDS_FFMPEG();
  const TempDir dir;
  for (const auto& [file, codec, kept] : {std::tuple{"a.mp4", "aac", "aac"}, {"b.mkv", "pcm_s16le", "aac"}}) {
    CAPTURE(file);
    ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=2", "-f", "lavfi", "-i",
            "sine=frequency=440:duration=2", "-pix_fmt", "yuv420p", "-c:a", codec, dir / file});
    for (const int64_t n : {50, 20}) {
      const auto source = open_source(dir / file);
      CHECK(source->info().audio == dir / file);
      const auto sink = open_sink(dir / "out.mp4", source->info());
      sink->write(source->read(n));
      CHECK(sink->finish() == "");
      CHECK(probe_value(dir / "out.mp4", "codec_name", "a:0") == kept);
      CHECK(std::stod(probe_value(dir / "out.mp4", "duration", "a:0")) ==
            doctest::Approx(double(n) / 25).epsilon(0.06));
      CHECK(probe_value(dir / "out.mp4", "nb_frames") == std::to_string(n));
    }
  }
}

TEST_CASE("mp4: sound shorter than the pictures costs no frames; none at all is no trouble") {
  NEEDS_FFMPEG();
  const TempDir dir;
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=2", "-f", "lavfi", "-i",
          "sine=frequency=440:duration=1", "-pix_fmt", "yuv420p", dir / "a.mp4"});
  const auto source = open_source(dir / "a.mp4");
  write_clip(dir / "out.mp4", source->read(1000), source->info());
  CHECK(probe_value(dir / "out.mp4", "nb_frames") == "50");
  CHECK(std::stod(probe_value(dir / "out.mp4", "duration", "a:0")) == doctest::Approx(1).epsilon(0.06));
}

TEST_CASE("a clip turned by its display matrix comes upright, and a size asked for turns with it") {
  NEEDS_FFMPEG();
  const TempDir dir;
  // Red on the left: the file says it is to be shown turned, so red ends at the top or the bottom.
  ffmpeg({"-f", "lavfi", "-i", "color=red:size=48x64:rate=10:duration=1", "-f", "lavfi", "-i",
          "color=blue:size=48x64:rate=10:duration=1", "-filter_complex", "hstack", "-pix_fmt", "yuv420p",
          dir / "flat.mp4"});
  ffmpeg({"-i", dir / "flat.mp4", "-c", "copy", "-metadata:s:v:0", "rotate=90", dir / "turned.mp4"});
  const auto source = open_source(dir / "turned.mp4");
  CHECK(source->info().size == FrameSize{64, 96});
  const Tensor frames = source->read(100);
  CHECK(frames.dim(0) == 10);
  const double top = mean_of(frames, 4, 4, 30, 50, 0), bottom = mean_of(frames, 62, 4, 30, 50, 0);
  CHECK(std::abs(top - bottom) > 200);
  CHECK(open_source(dir / "turned.mp4", {.size = {40, 20}, .image_rate = {}})->info().size ==
        FrameSize{20, 40});
  CHECK(open_source(dir / "flat.mp4", {.size = {40, 20}, .image_rate = {}})->info().size ==
        FrameSize{40, 20});
  const Tensor small = read_clip(dir / "flat.mp4", {.size = {40, 20}, .image_rate = {}});
  CHECK(mean_of(small, 0, 0, 20, 15, 0) > 200);
  CHECK(mean_of(small, 0, 25, 20, 15, 2) > 200);
}

TEST_CASE("a variable frame rate becomes constant at the average") {
  NEEDS_FFMPEG();
  const TempDir dir;
  // 20 frames at 25 per second, then every fifth: 2 s in all with 26 frames.
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=2", "-vf",
          "select='lt(n,20)+not(mod(n,5))'", "-vsync", "vfr", "-pix_fmt", "yuv420p", dir / "a.mp4"});
  const auto source = open_source(dir / "a.mp4");
  const double fps = source->info().fps.value(), last = 45.0 / 25;  // the last frame is the 46th
  CHECK(probe_value(dir / "a.mp4", "nb_frames") == "26");
  CHECK(fps == doctest::Approx(26 / std::stod(probe_value(dir / "a.mp4", "duration"))).epsilon(0.02));
  CHECK(double(source->read(1000).dim(0)) == doctest::Approx(1 + last * fps).epsilon(0.05));
}

TEST_CASE("pixels that are not square are made so") {
  NEEDS_FFMPEG();
  const TempDir dir;
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.2,setsar=2/1", "-pix_fmt", "yuv420p",
          dir / "a.mp4"});
  CHECK(open_source(dir / "a.mp4")->info().size == FrameSize{128, 48});
  ffmpeg({"-i", dir / "a.mp4", dir / "a.y4m"});
  CHECK(read_clip(dir / "a.y4m").shape() == Shape{5, 48, 128, 3});
}

TEST_CASE("a folder of images: natural order, one size, a folder out") {
  const TempDir dir;
  const Tensor frames = moving_picture(11, 20, 30);
  fs::create_directory(dir / "in");
  for (int i = 0; i < 11; ++i) write_png(dir / ("in/f" + std::to_string(i) + ".png"), frames.select(0, i));
  write_file(dir / "in/notes.txt", "not a picture");
  const auto source = open_source(dir / "in", {.size = {}, .image_rate = {12, 1}});
  CHECK(source->info().frames == 11);
  CHECK(source->info().fps.num == 12);
  CHECK(psnr(source->read(100), frames) > 90);  // f10 after f9, bit for bit

  const auto sink = open_sink(dir / "out/", source->info());
  sink->write(frames);
  CHECK_FALSE(fs::exists(dir / "out"));
  CHECK(sink->finish() == "");
  CHECK(fs::exists(dir / "out/000011.png"));
  CHECK_FALSE(fs::exists(dir / "out.partial"));
  CHECK(psnr(read_clip(dir / "out"), frames) > 90);
  CHECK(contains(error_of([&] { open_sink(dir / "out", source->info()); }), "already there"));

  write_png(dir / "in/f99.png", moving_picture(1, 21, 30).select(0, 0));
  CHECK(contains(error_of([&] { read_clip(dir / "in"); }), "f99.png: is 30x21"));
  CHECK(read_clip(dir / "in", {.size = {16, 8}, .image_rate = {}}).shape() == Shape{12, 8, 16, 3});
}

TEST_CASE("images: PNG is exact, JPEG close, and what is no image is named") {
  const TempDir dir;
  const Tensor image = moving_picture(1, 37, 53).select(0, 0);
  write_png(dir / "a.png", image);
  write_jpeg(dir / "a.jpg", image, 95);
  CHECK(psnr(read_image(dir / "a.png"), image) > 90);
  CHECK(psnr(read_image(dir / "a.jpg"), image) > 35);
  const std::string bytes = read_file(dir / "a.png");
  write_file(dir / "cut.png", bytes.substr(0, bytes.size() / 2));
  CHECK(contains(error_of([&] { read_image(dir / "cut.png"); }), "cut.png: damaged image"));
  write_file(dir / "text.png", "hello");
  CHECK(contains(error_of([&] { read_image(dir / "text.png"); }), "text.png: not an image"));
  CHECK(contains(error_of([&] { read_image(dir / "none.png"); }), "none.png: No such file"));
  std::string huge = bytes;  // width of the header
  huge[16] = huge[17] = char(0x01);
  write_file(dir / "huge.png", huge);
  CHECK(contains(error_of([&] { read_image(dir / "huge.png"); }), "huge.png"));
  CHECK(contains(error_of([&] { write_png(dir / "no/a.png", image); }), "no/a.png"));
  CHECK(contains(error_of([&] { write_jpeg(dir / "b.jpg", image, 0); }), "quality 0"));
  CHECK(contains(error_of([&] { write_png(dir / "b.png", Tensor({2, 2}, DType::u8)); }), "[2, 2]"));
}

TEST_CASE("sizes: parsing, turning, rounding") {
  CHECK(parse_size("640x360") == FrameSize{640, 360});
  for (const char* bad : {"", "640", "x", "640x", "x360", "640x0", "-1x5", "640x360x2", "1e3x5", "99999x5"})
    CHECK(contains(error_of([&] { parse_size(bad); }), "is not WxH"));
  CHECK(orient({640, 360}, {1080, 1920}) == FrameSize{360, 640});
  CHECK(orient({640, 360}, {1920, 1080}) == FrameSize{640, 360});
  CHECK(orient({360, 640}, {1920, 1080}) == FrameSize{640, 360});
  CHECK(orient({640, 360}, {500, 500}) == FrameSize{640, 360});
  CHECK(nearest_multiple({100, 3}, 8) == FrameSize{104, 8});
  CHECK(even({33, 1}) == FrameSize{32, 2});
}
