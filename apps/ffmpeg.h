// What ffmpeg's children have in common.
#pragma once

#include <string>

namespace rivulet {

// The reason in what ffmpeg wrote to stderr: its last two different lines, without the addresses and file
// names they begin with, in one line.
std::string ffmpeg_reason(const std::string& last_words);

}  // namespace rivulet
