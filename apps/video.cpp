#include "apps/video.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "apps/video_formats.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

std::string lower_extension(const std::string& path) {
  std::string ext = fs::path(path).extension().string();
  std::transform(ext.begin(), ext.end(), ext.begin(), [](unsigned char c) { return std::tolower(c); });
  return ext;
}

bool is_mp4(const std::string& ext) { return ext == ".mp4" || ext == ".m4v" || ext == ".mov"; }

}  // namespace

Tensor FrameSource::read(int64_t n) {
  check(n > 0, name_, ": asked for ", n, " frames");
  Tensor frames({n, info_.size.height, info_.size.width, 3}, DType::u8);
  const int64_t bytes = info_.size.height * info_.size.width * 3;
  int64_t got = 0;
  while (got < n && next(frames.data<uint8_t>() + got * bytes)) ++got;
  return got == 0 ? Tensor() : frames.slice(0, 0, got);
}

std::unique_ptr<FrameSource> open_source(const std::string& path, const SourceOptions& options) {
  check(!path.empty(), "no input given");
  if (path == "-") return open_y4m_source(path, options.size);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  check(fs::exists(status), path, ": no such file or folder");
  if (fs::is_directory(status)) return open_image_source(path, options);
  if (fs::is_character_file(status)) return open_ffmpeg_source(path, options.size);
  const int unreadable = ::access(path.c_str(), R_OK);
  check(!unreadable, path, ": ", std::strerror(errno));
  if (fs::is_regular_file(status)) check(fs::file_size(path) > 0, path, ": the file is empty");
  if (lower_extension(path) == ".y4m") return open_y4m_source(path, options.size);
  return open_ffmpeg_source(path, options.size);
}

bool is_video_path(const std::string& path) {
  const std::string ext = lower_extension(path);
  return path == "-" || is_mp4(ext) || ext == ".y4m";
}

std::unique_ptr<FrameSink> open_sink(const std::string& path, const VideoInfo& info) {
  check(!path.empty(), "no output given");
  check(info.size.width > 0 && info.size.height > 0 && info.fps.num > 0 && info.fps.den > 0, path,
        ": cannot write frames of ", info.size, " at ", info.fps.num, "/", info.fps.den, " per second");
  const std::string ext = lower_extension(path);
  if (path == "-" || ext == ".y4m") return open_y4m_sink(path, info);
  if (is_mp4(ext)) return open_ffmpeg_sink(path, info);
  check(ext.empty() || path.back() == '/' || fs::is_directory(path), path,
        ": outputs are .mp4, .mov, .m4v, .y4m, a folder or -, not ", ext);
  return open_image_sink(path, info);
}

std::string partial_path(const std::string& path) {
  const fs::path p(path);
  return (p.parent_path() / (p.stem().string() + ".partial" + p.extension().string())).string();
}

void check_writable(const std::string& path, const std::string& name) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  check(fd >= 0, name, ": cannot be written (", std::strerror(errno), ")");
  ::close(fd);
  const bool folder = fs::is_directory(name);
  if (folder) fs::remove(path);
  check(!folder, name, ": cannot be written (it is a folder)");
}

void check_frames_of(const Tensor& frames, const FrameSize& size, const std::string& name) {
  check(frames.dtype() == DType::u8 && frames.dims() == 4 && frames.dim(3) == 3 &&
            size_of_frames(frames) == size,
        name, ": holds frames of ", size, ", got ", frames.dtype(), " ", frames.shape());
}

}  // namespace rivulet
