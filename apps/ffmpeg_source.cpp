// Any file ffmpeg can read, as raw RGB through a pipe.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/ffmpeg.h"
#include "apps/video_formats.h"
#include "ops/image_io.h"

namespace rivulet {
namespace {

using Json = nlohmann::json;

// ffprobe writes most numbers as strings.
double real(const Json& object, const char* key, double otherwise) {
  const auto it = object.find(key);
  if (it == object.end()) return otherwise;
  if (it->is_number()) return it->get<double>();
  if (!it->is_string()) return otherwise;
  const std::string text = it->get<std::string>();
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && std::isfinite(value) ? value : otherwise;
}

std::string word(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

// "30000/1001" or "4:3"; {0, 1} when absent or not above 0.
Rational ratio(const Json& object, const char* key) {
  const std::string text = word(object, key);
  const char* end = text.data() + text.size();
  Rational r{0, 1};
  const auto [slash, error] = std::from_chars(text.data(), end, r.num);
  if (error != std::errc() || slash == end) return {0, 1};
  if (std::from_chars(slash + 1, end, r.den).ec != std::errc() || r.num <= 0 || r.den <= 0) return {0, 1};
  return r;
}

// Degrees the picture must be turned, from the display matrix.
int64_t rotation(const Json& stream) {
  for (const Json& side : stream.value("side_data_list", Json::array()))
    if (side.contains("rotation")) return std::llround(real(side, "rotation", 0));
  return 0;
}

struct Probe {
  FrameSize size;  // as a viewer sees it
  Rational fps;
  bool variable_rate = false;
  int64_t frames = -1;
  bool untagged_hd = false;  // colours without a matrix tag, in a size where players take BT.709
  bool audio = false;
  double audio_offset = 0;
};

Probe read_stream(const Json& stream, const std::string& path) {
  Probe p;
  p.size = {int64_t(real(stream, "width", 0)), int64_t(real(stream, "height", 0))};
  check(p.size.width > 0 && p.size.height > 0, path, ": holds no picture that can be read");
  p.untagged_hd = p.size.height >= 720 && word(stream, "pix_fmt").rfind("yuv", 0) == 0 &&
                  (word(stream, "color_space").empty() || word(stream, "color_space") == "unknown");
  const Rational pixel = ratio(stream, "sample_aspect_ratio");
  if (pixel.num > 0) p.size.width = std::max<int64_t>(1, std::llround(double(p.size.width) * pixel.value()));
  if (std::abs(rotation(stream)) % 180 == 90) std::swap(p.size.width, p.size.height);
  check(p.size.width <= kMaxImageSide && p.size.height <= kMaxImageSide, path, ": frames of ", p.size,
        " are larger than ", kMaxImageSide, " pixels a side");

  const Rational average = ratio(stream, "avg_frame_rate"), base = ratio(stream, "r_frame_rate");
  const Rational known = average.num > 0 ? average : base;
  p.variable_rate = average.num > 0 && base.num > 0 && std::abs(average.value() / base.value() - 1) > 0.01;
  // A constant rate is better named by the base: the average of a short clip is off by rounding.
  p.fps = p.variable_rate || base.num == 0 ? known : base;
  if (p.fps.num == 0) p.fps = {};
  check(p.fps.value() <= 1000, path, ": ", p.fps.value(), " frames per second cannot be right");

  const double counted = real(stream, "nb_frames", -1), seconds = real(stream, "duration", -1);
  if (counted >= 0)
    p.frames = int64_t(counted);
  else if (seconds > 0)
    p.frames = std::llround(seconds * p.fps.value());
  return p;
}

bool is_device(const std::string& path) { return path.rfind("/dev/", 0) == 0; }

std::vector<std::string> input_arguments(const std::string& path) {
  if (is_device(path)) return {"-f", "v4l2", "-i", path};
  // "file:" keeps a name like "concat:..." a name.
  return {"-protocol_whitelist", "file,pipe", "-i", "file:" + path};
}

Probe probe(const std::string& path) {
  std::vector<std::string> argv = {"ffprobe", "-v", "error", "-of", "json", "-show_streams", "-show_format"};
  for (std::string& a : input_arguments(path)) argv.push_back(std::move(a));
  const auto child = start_ffmpeg(argv, Pipes::output);
  std::string text;
  char buffer[4096];
  for (int64_t n; (n = child->read(buffer, sizeof buffer)) > 0;) text.append(buffer, size_t(n));
  const int code = child->wait();
  check(code == 0, path, ": not a video that ffmpeg can read (", ffmpeg_reason(child->last_words()), ")");
  const Json all = Json::parse(text, nullptr, false);
  check(all.is_object() && all.contains("streams"), path, ": ffprobe gave no description");
  const Json *video = nullptr, *audio = nullptr;
  for (const Json& s : all["streams"]) {
    const bool cover = s.contains("disposition") && real(s["disposition"], "attached_pic", 0) != 0;
    if (word(s, "codec_type") == "video" && !cover && video == nullptr) video = &s;
    if (word(s, "codec_type") == "audio" && audio == nullptr) audio = &s;
  }
  check(video != nullptr, path, ": holds no video");
  Probe p = read_stream(*video, path);
  p.audio = audio != nullptr && !is_device(path);
  const Json& format = all.contains("format") ? all["format"] : *video;
  p.audio_offset = std::max(0.0, real(*video, "start_time", 0) - real(format, "start_time", 0));
  return p;
}

std::string filters(const Probe& p, const FrameSize& size) {
  // One scaling to the size that covers the wanted one; the crop takes the middle of it.
  const double cover =
      std::max(double(size.width) / double(p.size.width), double(size.height) / double(p.size.height));
  const auto side = [&](int64_t n, int64_t least) {
    return std::max<int64_t>(least, std::llround(double(n) * cover));
  };
  std::ostringstream text;
  if (p.variable_rate) text << "fps=" << p.fps.num << '/' << p.fps.den << ',';
  text << "scale=" << side(p.size.width, size.width) << ':' << side(p.size.height, size.height)
       << ":flags=bicubic+accurate_rnd+full_chroma_int" << (p.untagged_hd ? ":in_color_matrix=bt709" : "")
       << ",crop=" << size.width << ':' << size.height;
  return text.str();
}

class FfmpegSource : public FrameSource {
 public:
  FfmpegSource(const std::string& path, const FrameSize& asked) {
    name_ = path;
    const Probe p = probe(path);
    info_.size = asked.width > 0 ? orient(asked, p.size) : p.size;
    info_.fps = p.fps;
    info_.frames = p.frames;
    if (p.audio) info_.audio = path;
    info_.audio_offset = p.audio_offset;
    std::vector<std::string> argv = {"ffmpeg", "-nostdin", "-v", "error"};
    for (std::string& a : input_arguments(path)) argv.push_back(std::move(a));
    argv.insert(argv.end(), {"-map", "0:V:0", "-an", "-sn", "-dn", "-vf", filters(p, info_.size)});
    // Frame for frame when the rate is constant: timestamps that jitter must not repeat or drop any.
    argv.insert(argv.end(), {"-vsync", p.variable_rate ? "cfr" : "passthrough"});
    if (p.variable_rate)
      argv.insert(argv.end(), {"-r", std::to_string(p.fps.num) + "/" + std::to_string(p.fps.den)});
    argv.insert(argv.end(), {"-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"});
    child_ = start_ffmpeg(argv, Pipes::output);
  }

 private:
  bool next(uint8_t* rgb) override {
    if (!child_) return false;
    const int64_t bytes = info_.size.width * info_.size.height * 3;
    if (child_->read(rgb, bytes) == bytes) {
      ++count_;
      return true;
    }
    const int code = child_->wait();
    const std::string words = child_->last_words();
    child_.reset();
    check(code == 0, name_, ": cannot be read beyond frame ", count_, " (", ffmpeg_reason(words), ")");
    // ffmpeg plays what is left of a file that was cut short and calls it a success.
    const bool short_of_frames = !words.empty() && info_.frames > 0 && count_ + 2 < info_.frames * 97 / 100;
    check(!short_of_frames && words.find("ended prematurely") == words.npos, name_, ": cut short, frame ",
          count_, " is the last that can be read",
          info_.frames > 0 ? " of about " + std::to_string(info_.frames) : "");
    return false;
  }

  std::unique_ptr<Process> child_;
  int64_t count_ = 0;
};

}  // namespace

std::unique_ptr<FrameSource> open_ffmpeg_source(const std::string& path, const FrameSize& size) {
  return std::make_unique<FfmpegSource>(path, size);
}

}  // namespace rivulet
