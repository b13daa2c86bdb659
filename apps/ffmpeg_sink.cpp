// H.264 in MP4 through ffmpeg. While it grows, the file is fragmented: playable up to its last second
// whatever happens. finish() lays it out as an ordinary MP4 and adds the audio of the source.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "apps/ffmpeg.h"
#include "apps/video_formats.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

class FfmpegSink : public FrameSink {
 public:
  FfmpegSink(const std::string& path, const VideoInfo& info)
      : path_(path), temporary_(partial_path(path)), whole_(partial_path(temporary_)), info_(info) {
    check_writable(temporary_, path);
    fs::remove(temporary_);  // ffmpeg makes it, if it can be started
    const std::string size = std::to_string(info.size.width) + "x" + std::to_string(info.size.height);
    const std::string rate = std::to_string(info.fps.num) + "/" + std::to_string(info.fps.den);
    // A key frame, and so a fragment, about every second.
    const std::string group = std::to_string(std::max<int64_t>(1, std::llround(info.fps.value())));
    // The sizes and colours are written out so that every player shows the same picture.
    const std::string pad = info.size.width < 2 || info.size.height < 2 ? "pad=max(iw\\,2):max(ih\\,2)," : "";
    const std::string filters = pad +
                                "crop=trunc(iw/2)*2:trunc(ih/2)*2:0:0,"
                                "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd,"
                                "format=yuv420p";
    // clang-format off
    encoder_ = start_ffmpeg({"ffmpeg", "-v", "error", "-y",
                             "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", rate,
                             "-i", "pipe:0", "-vf", filters,
                             "-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-g", group,
                             "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
                             "-color_range", "tv",
                             "-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-flush_packets", "1", "-f", "mp4",
                             "file:" + temporary_},
                            Pipes::input);
    // clang-format on
  }

  ~FfmpegSink() override {
    std::error_code error;
    if (encoder_) encoder_->wait();  // its input ends, so it completes the partial file
    if (!finished_ && count_ == 0) fs::remove(temporary_, error);
    fs::remove(whole_, error);
  }

  void write(const Tensor& frames) override {
    check_frames_of(frames, info_.size, path_);
    check(encoder_ != nullptr, path_, ": already closed");
    const Tensor dense = frames.contiguous();
    if (!encoder_->write(dense.raw(), dense.bytes())) {
      close_encoder();
      fail(path_, ": ffmpeg stopped taking frames");
    }
    count_ += dense.dim(0);
  }

  std::string finish() override {
    check(count_ > 0, path_, ": no frames were written");
    close_encoder();
    std::string note;
    if (info_.audio.empty() || !(lay_out("copy") || lay_out("aac"))) {
      if (!info_.audio.empty()) note = "the audio of " + info_.audio + " could not be carried over";
      info_.audio.clear();
      check(lay_out("copy"), path_, ": cannot be completed (", reason_, ")");
    }
    std::error_code error;
    fs::rename(whole_, path_, error);
    check(!error, path_, ": cannot be written (", error.message(), ")");
    fs::remove(temporary_, error);
    finished_ = true;
    return note;
  }

  std::string partial() const override { return finished_ || count_ == 0 ? "" : temporary_; }

 private:
  // Ends the encoder; throws when it had failed.
  void close_encoder() {
    if (!encoder_) return;
    const int code = encoder_->wait();
    const std::string words = encoder_->last_words();
    encoder_.reset();
    check(code == 0, path_, ": writing failed (", ffmpeg_reason(words), ")");
  }

  // Copies the encoded pictures into an ordinary MP4, with the source's audio for as long as they last.
  bool lay_out(const std::string& audio_codec) {
    std::vector<std::string> argv = {"ffmpeg", "-nostdin", "-v", "error", "-y", "-i", "file:" + temporary_};
    if (!info_.audio.empty()) {
      char text[32];
      std::snprintf(text, sizeof text, "%.6f", info_.audio_offset);
      argv.insert(argv.end(), {"-ss", text, "-protocol_whitelist", "file,pipe", "-i", "file:" + info_.audio});
      std::snprintf(text, sizeof text, "%.6f", double(count_) / info_.fps.value());
      argv.insert(argv.end(), {"-map", "0:v:0", "-map", "1:a:0", "-t", text, "-c:a", audio_codec});
    }
    argv.insert(argv.end(), {"-c:v", "copy", "-movflags", "+faststart", "-f", "mp4", "file:" + whole_});
    const auto child = start_ffmpeg(argv, Pipes::none);
    const bool good = child->wait() == 0;
    if (!good) reason_ = ffmpeg_reason(child->last_words());
    return good;
  }

  std::string path_, temporary_, whole_, reason_;
  VideoInfo info_;
  std::unique_ptr<Process> encoder_;
  int64_t count_ = 0;
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<FrameSink> open_ffmpeg_sink(const std::string& path, const VideoInfo& info) {
  return std::make_unique<FfmpegSink>(path, info);
}

}  // namespace rivulet
