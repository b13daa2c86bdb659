// A child process with pipes, started without a shell. Its stderr is read in the background and its end is
// kept, so that an error can say what the child said. The child has its own process group: Ctrl-C reaches
// only this program, which then ends the child in order.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace rivulet {

enum class Pipes { none, input, output, both };

class Process {
 public:
  // Starts argv[0], looked up in PATH. Throws when there is no such program.
  Process(const std::vector<std::string>& argv, Pipes pipes);
  // Kills the child if it still runs.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Reads until `bytes` are there or the child closes its output; returns the bytes read.
  int64_t read(void* to, int64_t bytes);
  // False when the child no longer takes input (it has died or closed its side).
  bool write(const void* from, int64_t bytes);
  void close_input();
  void close_output();

  // Closes the pipes and waits for the end: the exit code, or 128 + the signal that ended it.
  int wait();
  // The last lines the child wrote to stderr; complete after wait().
  std::string last_words() const;
  pid_t pid() const { return pid_; }

 private:
  void drain_errors();
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  int exit_code_ = -1;
  bool reaped_ = false;
  mutable std::mutex mutex_;
  std::string errors_;
  std::thread reader_;
};

// Runs a program to its end and returns what it wrote to stdout (at most `limit` bytes). Throws with its
// last words when it fails.
std::string run_for_output(const std::vector<std::string>& argv, int64_t limit = 16 << 20);

}  // namespace rivulet
