// The edit loop with editors that are simple functions, the pictures made of it, and `rivulet edit` whole.
#include <signal.h>

#include <chrono>
#include <thread>

#include "apps/edit_stream.h"
#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/image_io.h"
#include "tensor/safetensors.h"
#include "tests/edit_fixtures.h"

using namespace rivulet;
namespace fs = std::filesystem;

namespace {

class TensorSource : public FrameSource {
 public:
  explicit TensorSource(Tensor frames) : frames_(std::move(frames)) {
    name_ = "tensor";
    info_.size = size_of_frames(frames_);
  }

 private:
  bool next(uint8_t* rgb) override {
    if (at_ == frames_.dim(0)) return false;
    const Tensor frame = frames_.select(0, at_++).contiguous();
    std::copy_n(frame.data<uint8_t>(), frame.numel(), rgb);
    return true;
  }
  Tensor frames_;
  int64_t at_ = 0;
};

struct TensorSink : FrameSink {
  Tensors chunks;
  void write(const Tensor& frames) override { chunks.push_back(frames); }
  std::string finish() override { return {}; }
  std::string partial() const override { return {}; }
  int64_t frames() const {
    int64_t n = 0;
    for (const Tensor& c : chunks) n += c.dim(0);
    return n;
  }
};

Tensor invert(const Tensor& frames) { return unit_to_u8(1.0 - u8_to_unit(frames)); }

// Chunks of 3, then 6; the sizes a step was given are noted.
struct Fixture {
  TensorSource source;
  TensorSink sink, second, compare;
  std::vector<Shape> seen;
  EditStream stream;

  explicit Fixture(const Tensor& frames, FrameSize inner) : source(frames) {
    stream.source = &source;
    stream.tracks.push_back({"invert",
                             [this](const Tensor& f) {
                               seen.push_back(f.shape());
                               return invert(f);
                             },
                             &sink});
    stream.chunk_frames = [this] { return seen.empty() ? 3 : 6; };
    stream.inner = inner;
    stream.outer = even(source.info().size);
  }
};

struct Small {
  TempDir dir;
  std::string model = dir / "model";
  Small() { save_small_model(model); }
};

}  // namespace

TEST_CASE("edit loop: every frame once, the last chunk filled up") {
  const Tensor frames = moving_picture(11, 16, 24);
  Fixture f(frames, {24, 16});
  std::vector<int64_t> progress;
  f.stream.progress = [&](int64_t n) { progress.push_back(n); };
  CHECK(run(f.stream) == 11);
  CHECK(f.seen == std::vector<Shape>{{3, 16, 24, 3}, {6, 16, 24, 3}, {6, 16, 24, 3}});
  CHECK(progress == std::vector<int64_t>{3, 9, 11});
  REQUIRE(f.sink.chunks.size() == 3);
  CHECK(psnr(f.sink.chunks[0], invert(frames.slice(0, 0, 3))) > 90);
  CHECK(psnr(f.sink.chunks[2], invert(frames.slice(0, 9, 11))) > 90);
}

TEST_CASE("edit loop: a clip of whole chunks ends without an empty one") {
  Fixture f(moving_picture(9, 16, 24), {24, 16});
  CHECK(run(f.stream) == 9);
  CHECK(f.seen.size() == 2);
}

TEST_CASE("edit loop: sizes that are no multiple are edited nearby and come back even") {
  const Tensor frames = moving_picture(4, 35, 63);
  Fixture f(frames, nearest_multiple({63, 35}, 8));
  CHECK(run(f.stream) == 4);
  CHECK(f.seen[0] == Shape{3, 32, 64, 3});
  CHECK(f.sink.chunks[0].shape() == Shape{3, 34, 62, 3});
  CHECK(psnr(f.sink.chunks[0], invert(resize_frames(frames.slice(0, 0, 3), {62, 34}))) > 32);
}

TEST_CASE("edit loop: an interrupt ends it after the chunk; a clip without frames is refused") {
  Fixture f(moving_picture(30, 16, 24), {24, 16});
  std::atomic<bool> stop = false;
  f.stream.stop = &stop;
  f.stream.progress = [&](int64_t n) { stop = stop || n == 9; };
  CHECK(run(f.stream) == 9);
  CHECK(f.sink.frames() == 9);
  CHECK(run(f.stream) == 0);
  stop = false;
  f.stream.progress = [](int64_t) {};
  CHECK(run(f.stream) == 21);
  CHECK_THROWS_WITH_AS(run(f.stream), "tensor: holds no frames", Error);
}

TEST_CASE("edit loop: comparison and contact sheet see all tracks") {
  const Tensor frames = moving_picture(20, 90, 160);
  Fixture f(frames, {160, 90});
  f.stream.inner = {160, 90};
  f.stream.tracks.push_back({"as it is", [](const Tensor& x) { return x; }, &f.second});
  f.stream.compare = &f.compare;
  SheetSampler sheet({"source", "invert", "as it is"}, 4);
  f.stream.sheet = &sheet;
  CHECK(run(f.stream) == 20);
  CHECK(f.compare.frames() == 20);
  CHECK(f.second.frames() == 20);
  const FrameSize wide = side_by_side_size(3, {160, 90});
  CHECK(wide == FrameSize{3 * 160 + 2 * 4, 90 + 12});
  REQUIRE(size_of_frames(f.compare.chunks[0]) == wide);
  const Tensor panels = f.compare.chunks[0].slice(1, 12, 102);
  CHECK(psnr(panels.slice(2, 0, 160), frames.slice(0, 0, 3)) > 90);
  CHECK(psnr(panels.slice(2, 164, 324), invert(frames.slice(0, 0, 3))) > 90);
  CHECK(psnr(panels.slice(2, 328, 488), frames.slice(0, 0, 3)) > 90);

  const Tensor picture = sheet.sheet(10);
  CHECK(picture.shape() == Shape{24 + 3 * (24 + 90 + 4), 4 * (160 + 4) + 4, 3});
  // The columns are evenly spaced over the clip: frames 0, 6, 12 and 19 of 20.
  const Tensor row = picture.slice(0, 48, 138);
  const int64_t at[] = {0, 6, 12, 19};
  for (int64_t c = 0; c < 4; ++c)
    CHECK(psnr(row.slice(1, 4 + c * 164, 164 + c * 164), frames.select(0, at[c])) > 90);
}

TEST_CASE("contact sheet: a long stream keeps few frames, spread over all of it") {
  SheetSampler sheet({"a"}, 5);
  for (int i = 0; i < 300; ++i) {
    Tensor chunk({7, 4, 4, 3}, DType::u8);
    for (int64_t f = 0; f < 7; ++f) chunk.select(0, f).fill(double((i * 7 + f) * 255 / 2100));
    sheet.add({chunk});
  }
  const Tensor picture = sheet.sheet(1);
  for (int64_t c = 0; c < 5; ++c) {
    const double value = picture.select(0, 50).select(0, 4 + c * 8 + 1).select(0, 0).item();
    CHECK(value == doctest::Approx(255.0 * double(c) / 4).epsilon(0.04).scale(255));
  }
}

TEST_CASE("labels: letters are drawn, long ones cut, foreign bytes survive") {
  const auto drawn = [](const std::string& text, int64_t width) {
    Tensor image = zeros({24, 300, 3}, DType::u8);
    draw_text(image, 2, 2, text, 2, width);
    int64_t right = 0;
    const auto v = image.to_vector();
    for (size_t i = 0; i < v.size(); ++i)
      if (v[i] > 0) right = std::max(right, int64_t(i / 3 % 300));
    return right;
  };
  CHECK(drawn("", 290) == 0);
  CHECK(drawn("make it night", 290) > drawn("make it", 290));
  CHECK(drawn(std::string(400, 'w'), 200) <= 202);
  CHECK(drawn(std::string(400, 'w'), 290) > 250);
  CHECK(drawn("\xc3\xa9", 290) == drawn("?", 290));
}

TEST_CASE("rivulet edit: several prompts, comparison, sheet and state in one run") {
  NEEDS_FFMPEG();
  const Small s;
  const Tensor frames = moving_picture(20, 50, 70);
  const auto clip = open_sink(
      s.dir / "in.y4m", {.size = {70, 50}, .fps = {12, 1}, .frames = 20, .audio = {}, .audio_offset = 0});
  clip->write(frames);
  clip->finish();
  const Outcome o = rivulet_edit({s.dir / "in.y4m", "-p", "make it night", "-o", s.dir / "a.y4m", "-p", "it",
                                  "-o", s.dir / "b.mp4", "--compare", s.dir / "c.mp4", "--sheet",
                                  s.dir / "s.png", "--model", s.model, "--steps", "2", "--threads", "1"});
  CAPTURE(o.err);
  REQUIRE(o.code == 0);
  CHECK(o.out.find("edited 20 frames of 70x50 (at 72x48)") != o.out.npos);
  for (const char* name : {"a.y4m", "b.mp4", "c.mp4", "s.png"}) CHECK(o.out.find(s.dir / name) != o.out.npos);
  const auto a = open_source(s.dir / "a.y4m"), b = open_source(s.dir / "b.mp4"),
             c = open_source(s.dir / "c.mp4");
  CHECK(psnr(a->read(100), frames) > 30);  // an untrained network, and twice a change of size
  CHECK(psnr(b->read(100), frames) > 30);
  CHECK(b->info().fps.num == 12 * b->info().fps.den);
  CHECK(c->info().size == side_by_side_size(3, {70, 50}));
  CHECK(c->info().frames == 20);
  CHECK(read_image(s.dir / "s.png").dim(0) > 3 * 50);
}

TEST_CASE("rivulet edit: a stream goes on from its state, as if it had never stopped") {
  const Small s;
  const Tensor frames = moving_picture(9, 16, 24);
  const auto folder = [&](const std::string& name, int64_t begin, int64_t end) {
    fs::create_directory(s.dir / name);
    for (int64_t i = begin; i < end; ++i)
      write_png(s.dir / (name + "/" + std::to_string(i) + ".png"), frames.select(0, i));
    return s.dir / name;
  };
  const auto edit = [&](const std::string& in, const std::string& out, std::vector<std::string> more) {
    more.insert(more.begin(), {in, "-p", "night", "-o", s.dir / out, "--model", s.model, "--seed", "7"});
    const Outcome o = rivulet_edit(more);
    CAPTURE(o.err);
    REQUIRE(o.code == 0);
  };
  edit(folder("whole", 0, 9), "whole_out", {});
  edit(folder("first", 0, 6), "first_out", {"--state", s.dir / "state"});
  edit(folder("rest", 6, 9), "rest_out", {"--state", s.dir / "state"});
  for (int i = 0; i < 3; ++i)
    CHECK(read_file(s.dir / ("rest_out/00000" + std::to_string(i + 1) + ".png")) ==
          read_file(s.dir / ("whole_out/00000" + std::to_string(i + 7) + ".png")));
}

TEST_CASE("rivulet edit: the short mode takes the first frames at once") {
  const Small s;
  save_small_model(s.dir / "two_way", "bidirectional");
  const Tensor frames = moving_picture(7, 16, 24);
  fs::create_directory(s.dir / "in");
  for (int64_t i = 0; i < 7; ++i)
    write_png(s.dir / ("in/" + std::to_string(i) + ".png"), frames.select(0, i));
  const auto edit = [&](const std::string& out, std::vector<std::string> more) {
    more.insert(more.begin(),
                {s.dir / "in", "-p", "night", "-o", s.dir / out, "--steps", "2", "--mode", "short"});
    return rivulet_edit(more);
  };
  const auto count = [](const std::string& folder) {
    return std::distance(fs::directory_iterator(folder), fs::directory_iterator());
  };
  Outcome o = edit("all", {"--model", s.dir / "two_way"});
  CAPTURE(o.err);
  REQUIRE(o.code == 0);
  CHECK(count(s.dir / "all") == 7);  // a clip shorter than the limit is no error and is not filled up
  CHECK(psnr(open_source(s.dir / "all")->read(100), frames) > 30);  // an untrained network
  o = edit("some", {"--model", s.dir / "two_way", "--frames", "3", "--guidance", "1"});
  REQUIRE(o.code == 0);
  CHECK(count(s.dir / "some") == 3);
  o = edit("none", {"--model", s.model});
  CHECK(o.code == 2);
  CHECK(o.err.find("needs a bidirectional model") != o.err.npos);
  o = edit("none", {"--model", s.dir / "two_way", "--state", s.dir / "state"});
  CHECK(o.code == 2);
  CHECK(o.err.find("--mode short has none") != o.err.npos);
}

TEST_CASE("rivulet edit: pipes on both ends carry frames and nothing else") {
  const Small s;
  const Tensor frames = moving_picture(4, 16, 24);
  const auto clip = open_sink(s.dir / "in.y4m",
                              {.size = {24, 16}, .fps = {}, .frames = -1, .audio = {}, .audio_offset = 0});
  clip->write(frames);
  clip->finish();
  const std::string bytes = read_file(s.dir / "in.y4m");
  Process child({RIVULET_BIN, "edit", "-", "-p", "night", "-o", "-", "--model", s.model}, Pipes::both);
  CHECK(child.write(bytes.data(), int64_t(bytes.size())));
  child.close_input();
  std::string back(1 << 20, '\0');
  back.resize(size_t(child.read(back.data(), int64_t(back.size()))));
  CHECK(child.wait() == 0);
  write_file(s.dir / "out.y4m", back);
  CHECK(psnr(open_source(s.dir / "out.y4m")->read(100), frames) > 40);
}

TEST_CASE("rivulet edit: Ctrl-C keeps what is done under the final name, a kill beside it") {
  NEEDS_FFMPEG();
  const Small s;
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=100", "-pix_fmt", "yuv420p", "-preset",
          "ultrafast", s.dir / "in.mp4"});
  for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
    CAPTURE(signal);
    const std::string out = s.dir / "out.mp4", partial = s.dir / "out.partial.mp4";
    fs::remove(out);
    Process child({RIVULET_BIN, "edit", s.dir / "in.mp4", "-p", "night", "-o", out, "--model", s.model},
                  Pipes::output);
    // Long enough for some fragments to be on disk.
    for (int i = 0; i < 600 && (!fs::exists(partial) || fs::file_size(partial) < 3'000); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ::kill(child.pid(), signal);
    char buffer[4096];
    const std::string said(buffer, size_t(child.read(buffer, sizeof buffer)));
    const int code = child.wait();
    if (signal == SIGKILL) {
      CHECK(code == 128 + SIGKILL);
      CHECK_FALSE(fs::exists(out));
      // The encoder sees its input end and completes the file on its own.
      for (int i = 0; i < 100 && probe_value(partial, "codec_name") != "h264"; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      CHECK(open_source(partial)->read(20).dim(0) == 20);
    } else {
      CHECK(code == 130);
      CHECK(said.find("interrupted after") != said.npos);
      CHECK_FALSE(fs::exists(partial));
      const auto source = open_source(out);
      CHECK(source->info().frames >= 20);
      CHECK(source->info().frames < 2500);
      CHECK(source->read(20).dim(0) == 20);
    }
  }
}
