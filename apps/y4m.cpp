// YUV4MPEG2: a text header, then per frame "FRAME..." and the planes. Read: 8-bit 4:2:0, 4:2:2, 4:4:4 and
// mono. Written: 4:4:4, so that no colour is lost. Colour is BT.601. The range is what XCOLORRANGE
// says, otherwise limited, but full for mono: that is how ffmpeg writes it.
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "apps/video_formats.h"
#include "ops/image_io.h"
#include "tensor/parallel.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

constexpr size_t kMaxLine = 512;
constexpr int64_t kRowGrain = 64;

uint8_t to_byte(float x) { return uint8_t(std::clamp(x + 0.5f, 0.0f, 255.0f)); }

struct Format {
  FrameSize size;
  Rational fps, aspect{1, 1};
  int64_t chroma_x = 2, chroma_y = 2;  // subsampling; 0 for mono
  bool full_range = false;

  FrameSize chroma() const {
    if (chroma_x == 0) return {};
    return {(size.width + chroma_x - 1) / chroma_x, (size.height + chroma_y - 1) / chroma_y};
  }
  int64_t frame_bytes() const { return size.width * size.height + 2 * chroma().width * chroma().height; }
};

int64_t number(std::string_view text, const std::string& name, const std::string& field) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  check(error == std::errc() && end == text.data() + text.size() && n >= 0 && n <= INT32_MAX, name,
        ": bad y4m header field ", field);
  return n;
}

Rational ratio(const std::string& field, const std::string& name) {
  const size_t colon = field.find(':');
  check(colon != field.npos, name, ": bad y4m header field ", field);
  const std::string_view all = field;
  return {number(all.substr(1, colon - 1), name, field), number(all.substr(colon + 1), name, field)};
}

void set_colour(Format& f, const std::string& c, const std::string& name) {
  if (c == "C422") return void(f.chroma_y = 1);
  if (c == "C420" || c == "C420jpeg" || c == "C420mpeg2" || c == "C420paldv") return;
  if (c == "C444") return void(f.chroma_x = f.chroma_y = 1);
  if (c == "Cmono") return void(f.chroma_x = f.chroma_y = 0);
  fail(name, ": y4m format ", c, " is not supported (8-bit 420, 422, 444 and mono are)");
}

Format parse_header(const std::string& line, const std::string& name) {
  check(line.rfind("YUV4MPEG2", 0) == 0, name, ": not a y4m stream");
  Format f;
  std::string range;
  for (size_t at = line.find(' '); at != line.npos;) {
    const size_t end = line.find(' ', at + 1);
    const std::string field = line.substr(at + 1, end == line.npos ? end : end - at - 1);
    at = end;
    if (field.empty()) continue;
    const std::string_view value = std::string_view(field).substr(1);
    if (field[0] == 'W') f.size.width = number(value, name, field);
    if (field[0] == 'H') f.size.height = number(value, name, field);
    if (field[0] == 'F') f.fps = ratio(field, name);
    if (field[0] == 'A') f.aspect = ratio(field, name);
    if (field[0] == 'C') set_colour(f, field, name);
    if (field.rfind("XCOLORRANGE=", 0) == 0) range = field;
  }
  f.full_range = range == "XCOLORRANGE=FULL" || (range.empty() && f.chroma_x == 0);
  check(f.size.width > 0 && f.size.height > 0, name, ": the y4m header gives no frame size");
  check(f.size.width <= kMaxImageSide && f.size.height <= kMaxImageSide &&
            f.size.width * f.size.height <= kMaxImagePixels,
        name, ": frames of ", f.size, " are larger than ", kMaxImageSide, " pixels a side");
  if (f.fps.num == 0 || f.fps.den == 0) f.fps = {};
  if (f.aspect.num == 0 || f.aspect.den == 0) f.aspect = {1, 1};
  return f;
}

// Where pixel i of a row or column lies among the chroma samples: between two neighbours.
struct Tap {
  int64_t first, second;
  float weight;  // of the second
};

// `offset` is the place of a sample among its `step` pixels.
std::vector<Tap> chroma_taps(int64_t pixels, int64_t samples, int64_t step, double offset) {
  std::vector<Tap> taps;
  for (int64_t i = 0; i < pixels && step > 0; ++i) {
    const double at = std::clamp((double(i) - offset) / double(step), 0.0, double(samples - 1));
    const auto first = int64_t(at);
    taps.push_back({first, std::min(first + 1, samples - 1), float(at - double(first))});
  }
  return taps;
}

// Chroma is interpolated linearly in both directions. It sits on the left pixel of its pair and between two
// rows (MPEG-2, H.264), whatever variant of 4:2:0 the header names: most programs write that without thought.
void to_rgb(const Format& f, const uint8_t* planes, uint8_t* rgb) {
  const float scale = f.full_range ? 1.0f : 255.0f / 219.0f;
  const float chroma_scale = f.full_range ? 1.0f : 255.0f / 224.0f;
  const float black = f.full_range ? 0.0f : 16.0f;
  const int64_t w = f.size.width, h = f.size.height, cw = f.chroma().width, ch = f.chroma().height;
  const uint8_t *luma = planes, *cb = planes + w * h, *cr = cb + cw * ch;
  const std::vector<Tap> across = chroma_taps(w, cw, f.chroma_x, 0);
  const std::vector<Tap> down = chroma_taps(h, ch, f.chroma_y, double(f.chroma_y - 1) / 2);
  parallel_for(h, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> u(size_t(cw), 0.0f), v(size_t(cw), 0.0f);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t c = 0; c < cw; ++c) {
        const Tap& t = down[size_t(y)];
        const auto blend = [&](const uint8_t* plane) {
          const float a = plane[t.first * cw + c], b = plane[t.second * cw + c];
          return (a + t.weight * (b - a) - 128) * chroma_scale;
        };
        u[size_t(c)] = blend(cb), v[size_t(c)] = blend(cr);
      }
      for (int64_t x = 0; x < w; ++x) {
        const float l = (float(luma[y * w + x]) - black) * scale;
        float uu = 0, vv = 0;
        if (cw > 0) {
          const Tap& t = across[size_t(x)];
          uu = u[size_t(t.first)] + t.weight * (u[size_t(t.second)] - u[size_t(t.first)]);
          vv = v[size_t(t.first)] + t.weight * (v[size_t(t.second)] - v[size_t(t.first)]);
        }
        uint8_t* p = rgb + (y * w + x) * 3;
        p[0] = to_byte(l + 1.402f * vv);
        p[1] = to_byte(l - 0.344136f * uu - 0.714136f * vv);
        p[2] = to_byte(l + 1.772f * uu);
      }
    }
  });
}

// Limited range 4:4:4.
void from_rgb(const uint8_t* rgb, int64_t pixels, uint8_t* planes) {
  parallel_for(pixels, kRowGrain * 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float r = rgb[3 * i], g = rgb[3 * i + 1], b = rgb[3 * i + 2];
      const float l = 0.299f * r + 0.587f * g + 0.114f * b;
      planes[i] = to_byte(16 + l * (219.0f / 255.0f));
      planes[pixels + i] = to_byte(128 + (b - l) * (224.0f / 255.0f / 1.772f));
      planes[2 * pixels + i] = to_byte(128 + (r - l) * (224.0f / 255.0f / 1.402f));
    }
  });
}

using File = std::unique_ptr<FILE, int (*)(FILE*)>;

File open_file(const std::string& path, const char* mode, FILE* standard) {
  if (path == "-") return File(standard, [](FILE*) { return 0; });
  return File(std::fopen(path.c_str(), mode), std::fclose);
}

class Y4mSource : public FrameSource {
 public:
  Y4mSource(const std::string& path, const FrameSize& asked) : file_(open_file(path, "rbe", stdin)) {
    name_ = path == "-" ? "stdin" : path;
    check(file_ != nullptr, name_, ": ", std::strerror(errno));
    std::string header;
    check(read_line(header), name_, ": not a y4m stream");
    format_ = parse_header(header, name_);
    clip_ = format_.size;
    clip_.width =
        std::clamp<int64_t>(std::llround(double(clip_.width) * format_.aspect.value()), 1, kMaxImageSide);
    fit_ = asked.width > 0;
    info_.size = fit_ ? orient(asked, clip_) : clip_;
    info_.fps = format_.fps;
    std::error_code error;
    const auto bytes = path == "-" ? uintmax_t(-1) : fs::file_size(path, error);
    if (!error && path != "-")
      info_.frames =
          (int64_t(bytes) - int64_t(header.size())) / (format_.frame_bytes() + int64_t(strlen("FRAME\n")));
    planes_.resize(size_t(format_.frame_bytes()));
  }

 private:
  // A line without its end; false at the end of the stream. Throws on a line too long to be a header.
  bool read_line(std::string& line) {
    line.clear();
    for (int c; (c = std::getc(file_.get())) != '\n';) {
      if (c == EOF && line.empty()) return false;
      check(c != EOF && line.size() < kMaxLine, name_, ": not a y4m stream");
      line += char(c);
    }
    return true;
  }

  bool next(uint8_t* rgb) override {
    std::string line;
    if (!read_line(line)) return false;
    check(line.rfind("FRAME", 0) == 0, name_, ": damaged after frame ", count_);
    const size_t got = std::fread(planes_.data(), 1, planes_.size(), file_.get());
    check(got == planes_.size(), name_, ": ends in the middle of frame ", count_ + 1,
          ", the stream is cut short");
    ++count_;
    if (info_.size == format_.size) {
      to_rgb(format_, planes_.data(), rgb);
      return true;
    }
    Tensor frame({1, format_.size.height, format_.size.width, 3}, DType::u8);
    to_rgb(format_, planes_.data(), frame.data<uint8_t>());
    frame = resize_frames(frame, clip_);
    if (fit_) frame = fit_frames(frame, info_.size);
    std::memcpy(rgb, frame.raw(), size_t(frame.bytes()));
    return true;
  }

  File file_;
  Format format_;
  FrameSize clip_;
  bool fit_ = false;
  int64_t count_ = 0;
  std::vector<uint8_t> planes_;
};

class Y4mSink : public FrameSink {
 public:
  Y4mSink(const std::string& path, const VideoInfo& info)
      : path_(path), info_(info), file_(nullptr, std::fclose) {
    if (path != "-") {
      temporary_ = partial_path(path);
      check_writable(temporary_, path);
    }
    name_ = path == "-" ? "stdout" : path;
    file_ = open_file(path == "-" ? path : temporary_, "wbe", stdout);
    check(file_ != nullptr, name_, ": cannot be written (", std::strerror(errno), ")");
    planes_.resize(size_t(info.size.width * info.size.height * 3));
  }
  ~Y4mSink() override {
    std::error_code error;
    if (!finished_ && count_ == 0 && !temporary_.empty()) fs::remove(temporary_, error);
  }

  void write(const Tensor& frames) override {
    check_frames_of(frames, info_.size, name_);
    const Tensor dense = frames.contiguous();
    const int64_t pixels = info_.size.width * info_.size.height;
    if (count_ == 0)
      put_text("YUV4MPEG2 W" + std::to_string(info_.size.width) + " H" + std::to_string(info_.size.height) +
               " F" + std::to_string(info_.fps.num) + ":" + std::to_string(info_.fps.den) +
               " Ip A1:1 C444 XCOLORRANGE=LIMITED\n");
    for (int64_t i = 0; i < dense.dim(0); ++i, ++count_) {
      from_rgb(dense.data<uint8_t>() + i * pixels * 3, pixels, planes_.data());
      put_text("FRAME\n");
      put(planes_.data(), planes_.size());
    }
    const int failed = std::fflush(file_.get());
    check(!failed, name_, ": ", std::strerror(errno));
  }

  std::string finish() override {
    check(count_ > 0, name_, ": no frames were written");
    FILE* file = file_.release();
    const int failed = path_ == "-" ? std::fflush(file) : std::fclose(file);
    check(!failed, name_, ": ", std::strerror(errno));
    std::error_code error;
    if (!temporary_.empty()) fs::rename(temporary_, path_, error);
    check(!error, name_, ": cannot be written (", error.message(), ")");
    finished_ = true;
    return {};
  }

  std::string partial() const override { return finished_ || count_ == 0 ? "" : temporary_; }

 private:
  void put(const void* bytes, size_t n) {
    const size_t written = std::fwrite(bytes, 1, n, file_.get());
    check(written == n, name_, ": ", std::strerror(errno));
  }
  void put_text(const std::string& text) { put(text.data(), text.size()); }

  std::string path_, name_, temporary_;
  VideoInfo info_;
  File file_;
  std::vector<uint8_t> planes_;
  int64_t count_ = 0;
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<FrameSource> open_y4m_source(const std::string& path, const FrameSize& size) {
  return std::make_unique<Y4mSource>(path, size);
}

std::unique_ptr<FrameSink> open_y4m_sink(const std::string& path, const VideoInfo& info) {
  return std::make_unique<Y4mSink>(path, info);
}

}  // namespace rivulet
