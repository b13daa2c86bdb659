#include "apps/ffmpeg.h"

#include <algorithm>

#include "tensor/error.h"

namespace rivulet {

std::string ffmpeg_reason(const std::string& last_words) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < last_words.size();) {
    const size_t end = std::min(last_words.find('\n', at), last_words.size());
    std::string line = last_words.substr(at, end - at);
    at = end + 1;
    // "[mov,mp4 @ 0x55d0c0] text", perhaps several times, and "file:name: text".
    for (size_t close; line.rfind("[", 0) == 0 && (close = line.find("] ")) != line.npos;)
      line.erase(0, close + 2);
    if (line.rfind("file:", 0) == 0)
      if (const size_t colon = line.rfind(": "); colon != line.npos) line.erase(0, colon + 2);
    if (!line.empty() && std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
  }
  if (lines.empty()) return "ffmpeg gave no reason";
  if (lines.size() == 1) return lines[0];
  return lines[lines.size() - 2] + "; " + lines.back();
}

std::unique_ptr<Process> start_ffmpeg(const std::vector<std::string>& argv, Pipes pipes) {
  try {
    return std::make_unique<Process>(argv, pipes);
  } catch (const Error& e) {
    fail(e.what(), "; video files are read and written with ffmpeg (apt install ffmpeg)");
  }
}

}  // namespace rivulet
