#include "apps/safeguards/classifier.h"

#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "apps/process.h"
#include "tensor/error.h"

namespace rivulet {
namespace {

// Kills a child and what it started, unless told in time that it has ended.
class Deadline {
 public:
  Deadline(pid_t child, double seconds)
      : thread_([this, child, seconds] {
          std::unique_lock lock(mutex_);
          passed_ = !ended_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return over_; });
          if (passed_) ::kill(-child, SIGKILL);
        }) {}
  ~Deadline() { stop(); }
  // Whether the time was up first.
  bool stop() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    ended_.notify_all();
    if (thread_.joinable()) thread_.join();
    return passed_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool over_ = false, passed_ = false;
  std::thread thread_;
};

std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; }, ' ');
  return text;
}

Verdict failure(const ClassifierConfig& config, const std::string& what) {
  return {config.on_failure == "allow", "the classifier " + what, true};
}

}  // namespace

Verdict ask_classifier(const ClassifierConfig& config, const std::string& text) {
  std::string answer(4096, '\0');
  int code = 0;
  bool late = false;
  try {
    Process child(config.command, Pipes::both);
    Deadline deadline(child.pid(), config.seconds);
    const std::string line = one_line(text) + "\n";
    child.write(line.data(), int64_t(line.size()));
    child.close_input();
    answer.resize(size_t(child.read(answer.data(), int64_t(answer.size()))));
    // The deadline holds until the child has ended, and is lifted before its process number is given back.
    siginfo_t info;
    while (::waitid(P_PID, id_t(child.pid()), &info, WEXITED | WNOWAIT) < 0 && errno == EINTR) continue;
    late = deadline.stop();
    code = child.wait();
  } catch (const Error& e) {
    return failure(config, std::string("did not start: ") + e.what());
  }
  if (late) return failure(config, "did not answer in time");
  if (code != 0) return failure(config, "ended with code " + std::to_string(code));
  answer = one_line(answer.substr(0, answer.find('\n')));
  if (answer == "allow") return {true, "", false};
  if (answer == "refuse" || answer.rfind("refuse ", 0) == 0)
    return {false, answer.size() > 7 ? answer.substr(7) : "", false};
  return failure(config, "answered neither allow nor refuse");
}

}  // namespace rivulet
