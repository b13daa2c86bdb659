// One value on its way from one thread to the next. The giver waits until the last one was taken, so work
// never piles up between two stages.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>

namespace rivulet::serve {

template <class T>
class Handoff {
 public:
  // False once closed.
  bool give(T value) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !value_; });
    if (closed_) return false;
    value_ = std::move(value);
    changed_.notify_all();
    return true;
  }
  // Empty once closed.
  std::optional<T> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || value_; });
    if (closed_) return std::nullopt;
    std::optional<T> taken = std::move(value_);
    value_.reset();
    changed_.notify_all();
    return taken;
  }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    value_.reset();
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<T> value_;
  bool closed_ = false;
};

}  // namespace rivulet::serve
