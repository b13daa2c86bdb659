#include "apps/interrupt.h"

#include <signal.h>

#include "tensor/error.h"

namespace rivulet {
namespace {

// A signal handler has no argument to reach an object by, so its flag is the one global of the program.
std::atomic<bool> raised{false};
std::atomic<bool> in_use{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_signal(int) { raised = true; }

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
  handle(on_signal, int(SA_RESETHAND) | SA_RESTART);
}

Interrupt::~Interrupt() {
  handle(SIG_DFL, 0);
  in_use = false;
}

const std::atomic<bool>& Interrupt::flag() const { return raised; }

}  // namespace rivulet
