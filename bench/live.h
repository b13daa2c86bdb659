// The live server under a steady camera, as one person would use it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace rivulet::bench {

struct LiveSettings {
  double seconds = 60;
  double camera_fps = 30;  // at most; the server's own pace is kept, as the page keeps it
  std::string size = "256x144";
  std::string instruction = "turn it into a pencil sketch";
};

// Starts `rivulet serve` beside this program, plays the bundled clip to it as a camera and measures: edited
// frames per second, capture to arrival of the edit (p50, p99, maximum), dropped frames, the server's memory,
// each over the whole time and minute by minute.
nlohmann::json measure_live(const LiveSettings& settings);

}  // namespace rivulet::bench
