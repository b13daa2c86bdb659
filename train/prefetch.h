// Makes samples ahead of their use on worker threads, in a fixed order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace rivulet {

// next() returns sample(first), sample(first + 1), ... in that order whatever the number of workers, as
// long as sample(index) depends on its index alone. It is called on several threads at once. An exception
// that it throws comes out of the next() that would have returned its sample.
template <class T>
class Prefetch {
 public:
  // At most `ahead` samples are finished or in the making before they are asked for.
  Prefetch(std::function<T(int64_t index)> sample, int64_t first, int64_t ahead, int workers = 1)
      : sample_(std::move(sample)), next_(first), started_(first), ahead_(ahead) {
    check(ahead >= 1 && workers >= 1, "Prefetch: ahead is ", ahead, " and workers ", workers,
          ", both must be at least 1");
    for (int i = 0; i < workers; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Prefetch() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& t : workers_) t.join();
  }
  Prefetch(const Prefetch&) = delete;
  Prefetch& operator=(const Prefetch&) = delete;

  T next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready_.count(next_) != 0; });
    auto slot = ready_.extract(next_++);
    lock.unlock();
    changed_.notify_all();
    if (slot.mapped().error) std::rethrow_exception(slot.mapped().error);
    return std::move(slot.mapped().value);
  }

 private:
  struct Slot {
    T value{};
    std::exception_ptr error;
  };

  void work() {
    set_threads(
        1);  // the workers are the parallelism; a team of threads under each would fight for the cores
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop_ || started_ < next_ + ahead_; });
      if (stop_) return;
      const int64_t index = started_++;
      lock.unlock();
      Slot slot;
      try {
        slot.value = sample_(index);
      } catch (...) {
        slot.error = std::current_exception();
      }
      lock.lock();
      ready_.emplace(index, std::move(slot));
      changed_.notify_all();
    }
  }

  std::function<T(int64_t)> sample_;
  int64_t next_, started_, ahead_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, Slot> ready_;
  std::vector<std::thread> workers_;
  bool stop_ = false;
};

}  // namespace rivulet
