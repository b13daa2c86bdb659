// A folder of images as a clip.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "apps/video_formats.h"
#include "ops/image_io.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

// "frame_9" before "frame_10": runs of digits compare as numbers.
bool natural_less(const std::string& a, const std::string& b) {
  const auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (digit(a[i]) && digit(b[j])) {
      const auto number = [&](const std::string& s, size_t& at) {
        const size_t begin = std::min(s.find_first_not_of('0', at), s.size());
        at = begin;
        while (at < s.size() && digit(s[at])) ++at;
        return s.substr(begin, at - begin);
      };
      const std::string x = number(a, i), y = number(b, j);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
    } else {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
    }
  }
  return a.size() - i != b.size() - j ? a.size() - i < b.size() - j : a < b;
}

class ImageSource : public FrameSource {
 public:
  ImageSource(const std::string& folder, const SourceOptions& options) {
    name_ = folder;
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.is_regular_file() && has_image_extension(entry.path().string()))
        files_.push_back(entry.path().string());
    check(!files_.empty(), folder, ": the folder holds no images");
    std::sort(files_.begin(), files_.end(), natural_less);
    const Tensor first = read_image(files_[0]);
    clip_ = {first.dim(1), first.dim(0)};
    fit_ = options.size.width > 0;
    info_.size = fit_ ? orient(options.size, clip_) : clip_;
    info_.fps = options.image_rate;
    info_.frames = int64_t(files_.size());
  }

 private:
  bool next(uint8_t* rgb) override {
    if (at_ == files_.size()) return false;
    const std::string& file = files_[at_++];
    Tensor image = read_image(file);
    if (fit_) {
      image = fit_frames(image.unsqueeze(0), info_.size);
    } else {
      check(image.dim(0) == clip_.height && image.dim(1) == clip_.width, file, ": is ", image.dim(1), "x",
            image.dim(0), ", the first image of the folder ", clip_);
    }
    std::memcpy(rgb, image.raw(), size_t(image.bytes()));
    return true;
  }

  std::vector<std::string> files_;
  FrameSize clip_;
  bool fit_ = false;
  size_t at_ = 0;
};

// 000001.png, 000002.png, ... in a folder that gets its name at the end.
class ImageSink : public FrameSink {
 public:
  ImageSink(const std::string& folder, const VideoInfo& info) : size_(info.size) {
    path_ = fs::path(folder).has_filename() ? folder : fs::path(folder).parent_path().string();
    check(!fs::exists(path_) || (fs::is_directory(path_) && fs::is_empty(path_)), path_,
          ": already there, and a folder of frames is not written over it");
    temporary_ = path_ + ".partial";
    std::error_code error;
    if (is_ours()) fs::remove_all(temporary_, error);
    check(fs::create_directory(temporary_, error), path_, ": cannot be written (",
          error ? error.message() : temporary_ + " is in the way", ")");
  }
  ~ImageSink() override {
    std::error_code error;
    if (!finished_ && count_ == 0) fs::remove(temporary_, error);
  }

  void write(const Tensor& frames) override {
    check_frames_of(frames, size_, path_);
    for (int64_t i = 0; i < frames.dim(0); ++i) {
      char name[32];
      std::snprintf(name, sizeof name, "/%06lld.png", static_cast<long long>(count_ + 1));
      write_png(temporary_ + name, frames.select(0, i));
      ++count_;
    }
  }

  std::string finish() override {
    check(count_ > 0, path_, ": no frames were written");
    std::error_code error;
    fs::rename(temporary_, path_, error);
    check(!error, path_, ": cannot be written (", error.message(), ")");
    finished_ = true;
    return {};
  }

  std::string partial() const override { return finished_ || count_ == 0 ? "" : temporary_; }

 private:
  // A folder left by an earlier run holds frames and nothing else.
  bool is_ours() const {
    if (!fs::is_directory(temporary_)) return false;
    return std::all_of(fs::directory_iterator(temporary_), {},
                       [](const fs::directory_entry& e) { return e.path().extension() == ".png"; });
  }

  std::string path_, temporary_;
  FrameSize size_;
  int64_t count_ = 0;
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<FrameSource> open_image_source(const std::string& folder, const SourceOptions& options) {
  return std::make_unique<ImageSource>(folder, options);
}

std::unique_ptr<FrameSink> open_image_sink(const std::string& folder, const VideoInfo& info) {
  return std::make_unique<ImageSink>(folder, info);
}

}  // namespace rivulet
