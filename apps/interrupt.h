// Ctrl-C as a flag that long loops look at.
#pragma once

#include <atomic>

namespace rivulet {

// While in scope, the first SIGINT or SIGTERM only raises the flag, so that the program can end in order.
// A second one, later than the same keystroke could be, ends the program at once. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  const std::atomic<bool>& flag() const;
};

}  // namespace rivulet
