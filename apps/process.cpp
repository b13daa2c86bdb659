#include "apps/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "tensor/error.h"

extern char** environ;

namespace rivulet {
namespace {

constexpr size_t kKeptErrorBytes = 4096;

void close_fd(int& fd) {
  if (fd >= 0) ::close(std::exchange(fd, -1));
}

// Two connected descriptors that close on exec. Sockets rather than a pipe where we write, because a send
// can be told not to raise SIGPIPE and a write to a pipe cannot.
struct Channel {
  int ours = -1, theirs = -1;
  ~Channel() {
    close_fd(ours);
    close_fd(theirs);
  }
  void open_for_writing() {
    int fd[2];
    const int failed = ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd);
    check(!failed, "socketpair: ", std::strerror(errno));
    ours = fd[0], theirs = fd[1];
  }
  void open_for_reading() {
    int fd[2];
    const int failed = ::pipe2(fd, O_CLOEXEC);
    check(!failed, "pipe: ", std::strerror(errno));
    ours = fd[0], theirs = fd[1];
    // A child that is ahead of us may fill a whole frame or two; the kernel's default is a few rows.
    ::fcntl(ours, F_SETPIPE_SZ, 1 << 20);
  }
};

struct SpawnSettings {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  SpawnSettings() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    sigset_t none, defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    for (int s : {SIGPIPE, SIGINT, SIGTERM}) sigaddset(&defaults, s);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }
  ~SpawnSettings() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  void connect(int fd, int target, int flags) {
    if (fd >= 0)
      posix_spawn_file_actions_adddup2(&actions, fd, target);
    else
      posix_spawn_file_actions_addopen(&actions, target, "/dev/null", flags, 0);
  }
};

}  // namespace

Process::Process(const std::vector<std::string>& argv, Pipes pipes) {
  check(!argv.empty(), "process: no program given");
  Channel in, out, err;
  if (pipes == Pipes::input || pipes == Pipes::both) in.open_for_writing();
  if (pipes == Pipes::output || pipes == Pipes::both) out.open_for_reading();
  err.open_for_reading();

  SpawnSettings settings;
  settings.connect(in.theirs, STDIN_FILENO, O_RDONLY);
  settings.connect(out.theirs, STDOUT_FILENO, O_WRONLY);
  settings.connect(err.theirs, STDERR_FILENO, O_WRONLY);
  // Descriptors that other code opened without close-on-exec must not live on in the child.
  posix_spawn_file_actions_addclosefrom_np(&settings.actions, STDERR_FILENO + 1);

  std::vector<char*> args;
  for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
  args.push_back(nullptr);
  const int error =
      ::posix_spawnp(&pid_, args[0], &settings.actions, &settings.attributes, args.data(), environ);
  check(error != ENOENT, argv[0], " is not installed or not in PATH");
  check(error == 0, "cannot start ", argv[0], ": ", std::strerror(error));
  in_ = std::exchange(in.ours, -1);
  out_ = std::exchange(out.ours, -1);
  err_ = std::exchange(err.ours, -1);
  reader_ = std::thread([this] { drain_errors(); });
}

Process::~Process() {
  close_fd(in_);
  close_fd(out_);
  if (!reaped_) {
    ::kill(-pid_, SIGKILL);
    wait();
  }
}

void Process::drain_errors() {
  char buffer[1024];
  while (true) {
    const ssize_t n = ::read(err_, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    std::lock_guard lock(mutex_);
    errors_.append(buffer, size_t(n));
    if (errors_.size() > 2 * kKeptErrorBytes) errors_.erase(0, errors_.size() - kKeptErrorBytes);
  }
}

int64_t Process::read(void* to, int64_t bytes) {
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::read(out_, static_cast<char*>(to) + done, size_t(bytes - done));
    if (n < 0 && errno == EINTR) continue;
    check(n >= 0, "reading from a child process: ", std::strerror(errno));
    if (n == 0) break;
    done += n;
  }
  return done;
}

bool Process::write(const void* from, int64_t bytes) {
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::send(in_, static_cast<const char*>(from) + done, size_t(bytes - done), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) return false;
    check(n >= 0, "writing to a child process: ", std::strerror(errno));
    done += n;
  }
  return true;
}

void Process::close_input() { close_fd(in_); }
void Process::close_output() { close_fd(out_); }

int Process::wait() {
  if (reaped_) return exit_code_;
  close_fd(in_);
  close_fd(out_);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) continue;
  reaped_ = true;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  reader_.join();
  close_fd(err_);
  return exit_code_;
}

std::string Process::last_words() const {
  std::lock_guard lock(mutex_);
  return errors_;
}

std::string run_for_output(const std::vector<std::string>& argv, int64_t limit) {
  Process child(argv, Pipes::output);
  std::string text(4096, '\0');
  int64_t size = 0;
  while (true) {
    const int64_t n = child.read(text.data() + size, int64_t(text.size()) - size);
    size += n;
    if (size < int64_t(text.size())) break;
    check(size <= limit, argv[0], ": more than ", limit, " bytes of output");
    text.resize(2 * text.size());
  }
  text.resize(size_t(size));
  const int code = child.wait();
  check(code == 0, argv[0], " failed with code ", code, ": ", child.last_words());
  return text;
}

}  // namespace rivulet
