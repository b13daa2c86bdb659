// The kinds of source and sink behind open_source and open_sink.
#pragma once

#include "apps/video.h"

namespace rivulet {

std::unique_ptr<FrameSource> open_ffmpeg_source(const std::string& path, const FrameSize& size);
std::unique_ptr<FrameSource> open_y4m_source(const std::string& path, const FrameSize& size);
std::unique_ptr<FrameSource> open_image_source(const std::string& folder, const SourceOptions& options);

std::unique_ptr<FrameSink> open_ffmpeg_sink(const std::string& path, const VideoInfo& info);
std::unique_ptr<FrameSink> open_y4m_sink(const std::string& path, const VideoInfo& info);
std::unique_ptr<FrameSink> open_image_sink(const std::string& folder, const VideoInfo& info);

// "dir/clip.mp4" -> "dir/clip.partial.mp4"
std::string partial_path(const std::string& path);
// Throws unless a file of this name could be made; leaves an empty one.
void check_writable(const std::string& path, const std::string& name);
// Throws unless frames are u8 [F, H, W, 3] of this size.
void check_frames_of(const Tensor& frames, const FrameSize& size, const std::string& name);

}  // namespace rivulet
