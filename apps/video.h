// Video in and out as u8 RGB frames [F, H, W, 3].
//
// Sources: any file that ffmpeg reads (through a child process), .y4m (8-bit, read here), a folder of images
// in natural order of their names, a webcam by device path, and - for y4m on stdin.
// Sinks: .mp4/.m4v/.mov (H.264 through ffmpeg), .y4m, a folder of PNGs, and - for y4m on stdout.
//
// Sizes: a source gives frames as a viewer sees them: turned by the file's rotation, with square pixels. When
// a size is asked for, frames are scaled to cover it and cropped at the centre (orientation: apps/frames.h).
// H.264 needs even sides, so an mp4 loses the last row or column of odd ones.
// Rates: variable frame rate becomes constant at the stream's average; frames are then repeated or left out.
#pragma once

#include <memory>
#include <string>

#include "apps/frames.h"

namespace rivulet {

struct Rational {
  int64_t num = 25, den = 1;
  double value() const { return double(num) / double(den); }
};

struct VideoInfo {
  FrameSize size;
  Rational fps;
  int64_t frames = -1;      // -1 unknown; otherwise what the file claims or its length suggests
  std::string audio;        // a file with an audio stream that belongs to the pictures; empty for none
  double audio_offset = 0;  // where in it the first picture falls, seconds
};

struct SourceOptions {
  FrameSize size;         // {0, 0} for the clip's own
  Rational image_rate{};  // of a folder of images
};

class FrameSource {
 public:
  virtual ~FrameSource() = default;
  const VideoInfo& info() const { return info_; }
  const std::string& name() const { return name_; }
  // The next n frames, or as many as are left: undefined at the end. Throws when the input turns out damaged
  // or cut short, naming it.
  Tensor read(int64_t n);

 protected:
  // Fills H * W * 3 bytes; false at the end.
  virtual bool next(uint8_t* rgb) = 0;
  std::string name_;
  VideoInfo info_;
};

// Throws an Error that names `path` when there is nothing to read frames from.
std::unique_ptr<FrameSource> open_source(const std::string& path, const SourceOptions& options = {});

// Frames go to a temporary name beside the target ("clip.partial.mp4" for "clip.mp4") that is playable at any
// time; finish() gives it its final name. Without finish(), what was written stays under the temporary name.
class FrameSink {
 public:
  virtual ~FrameSink() = default;
  virtual void write(const Tensor& frames) = 0;
  // Completes the file. The result is empty, or says what had to be left out.
  virtual std::string finish() = 0;
  // Where unfinished frames are; empty when there are none (nothing written, or already finished).
  virtual std::string partial() const = 0;
};

// Size, rate and audio of the result come from `info`. Throws when `path` cannot be written.
std::unique_ptr<FrameSink> open_sink(const std::string& path, const VideoInfo& info);

// True when a sink of this path would be a video file or stdout, not a folder.
bool is_video_path(const std::string& path);

}  // namespace rivulet
