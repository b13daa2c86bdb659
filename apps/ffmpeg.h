// What ffmpeg's children have in common.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "apps/process.h"

namespace rivulet {

// The reason in what ffmpeg wrote to stderr: its last two different lines, without the addresses and file
// names they begin with, in one line.
std::string ffmpeg_reason(const std::string& last_words);

// Starts ffmpeg or ffprobe; when it is missing, the error says what it is for.
std::unique_ptr<Process> start_ffmpeg(const std::vector<std::string>& argv, Pipes pipes);

}  // namespace rivulet
