#include "apps/interrupt.h"

#include <signal.h>
#include <time.h>

#include "tensor/error.h"

namespace rivulet {
namespace {

// A signal handler has no argument to reach an object by, so its flag is the one global of the program.
std::atomic<bool> raised{false};
std::atomic<bool> in_use{false};
static_assert(std::atomic<bool>::is_always_lock_free);

// When the first signal came, in milliseconds; written before `raised`.
std::atomic<int64_t> first_at{0};
// Tools such as timeout(1) send one signal twice, to the process and to its group: within this time a
// second one means nothing.
constexpr int64_t kSameSignal = 1000;

int64_t milliseconds() {
  struct timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

void on_signal(int s) {
  if (!raised) {
    first_at = milliseconds();
    raised = true;
  } else if (milliseconds() - first_at > kSameSignal) {
    ::signal(s, SIG_DFL);
    ::raise(s);
  }
}

void handle(void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  for (int s : {SIGINT, SIGTERM}) ::sigaction(s, &action, nullptr);
}

}  // namespace

Interrupt::Interrupt() {
  check(!in_use.exchange(true), "interrupt: already watched");
  raised = false;
  handle(on_signal, SA_RESTART);
}

Interrupt::~Interrupt() {
  handle(SIG_DFL, 0);
  in_use = false;
}

const std::atomic<bool>& Interrupt::flag() const { return raised; }

}  // namespace rivulet
