// What one client may ask of the server. Everything here is checked before anything is decoded or stored.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rivulet::serve {

inline constexpr int64_t kMaxFrameBytes = 1 << 20;                // one JPEG
inline constexpr int64_t kMaxMessageBytes = kMaxFrameBytes + 16;  // with its header
inline constexpr int64_t kMaxTextBytes = 4096;                    // one JSON message
inline constexpr int64_t kMaxInstructionBytes = 240;
inline constexpr int64_t kMaxTokenBytes = 128;
inline constexpr int64_t kMaxFrameSide = 2048;
inline constexpr int64_t kMaxProtectedRegions = 8;
inline constexpr int64_t kMaxLatencies = 240;  // in one report
inline constexpr int64_t kMaxSteps = 8;
inline constexpr int64_t kMaxViewers = 16;
inline constexpr int64_t kMaxConnections = 128;

inline constexpr double kHelloSeconds = 5;  // a connection that has not said what it wants by then is closed
inline constexpr double kSilenceSeconds = 3;  // a client that answers no ping for so long is gone
inline constexpr double kRequestSeconds = 5;  // for a whole HTTP request, so that none can be fed by drops

// Allows `rate` units a second on average and `burst` at once. Time is the caller's, in seconds.
class RateLimit {
 public:
  RateLimit(double rate, double burst) : rate_(rate), burst_(burst), left_(burst) {}
  bool take(double now, double units = 1) {
    left_ = std::min(burst_, left_ + std::max(0.0, now - last_) * rate_);
    last_ = std::max(last_, now);
    if (left_ < units) return false;
    left_ -= units;
    return true;
  }

 private:
  double rate_, burst_, left_, last_ = 0;
};

}  // namespace rivulet::serve
