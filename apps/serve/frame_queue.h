// Frames on their way to the editor: bounded, and when full it is the oldest that goes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "apps/serve/protocol.h"

namespace rivulet::serve {

// A frame as it came, its JPEG still inside the message.
struct SourceFrame {
  PictureHeader header;
  std::shared_ptr<const std::string> message;
  double arrived = 0;  // seconds, steady clock
  std::string_view jpeg() const { return std::string_view(*message).substr(kPictureHeader); }
};

class FrameQueue {
 public:
  explicit FrameQueue(size_t capacity) : capacity_(capacity) {}

  // True when a frame had to go.
  bool push(SourceFrame frame) {
    bool dropped = false;
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      if ((dropped = frames_.size() == capacity_)) frames_.pop_front();
      dropped_ += dropped;
      frames_.push_back(std::move(frame));
    }
    ready_.notify_all();
    return dropped;
  }

  // Waits for n frames and takes the oldest n; empty once the queue is closed.
  std::vector<SourceFrame> take(size_t n) {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return closed_ || frames_.size() >= n; });
    if (closed_) return {};
    std::vector<SourceFrame> taken(std::make_move_iterator(frames_.begin()),
                                   std::make_move_iterator(frames_.begin() + int64_t(n)));
    frames_.erase(frames_.begin(), frames_.begin() + int64_t(n));
    return taken;
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      frames_.clear();
    }
    ready_.notify_all();
  }

  int64_t dropped() const {
    const std::lock_guard lock(mutex_);
    return dropped_;
  }

 private:
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<SourceFrame> frames_;
  int64_t dropped_ = 0;
  bool closed_ = false;
};

}  // namespace rivulet::serve
