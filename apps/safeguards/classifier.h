// An external classifier of instructions: a child process that reads the instruction (UTF-8, one line, then
// the end of its input) and answers "allow" or "refuse [reason]" on its first line of output, with exit code
// 0.
#pragma once

#include <string>

#include "apps/safeguards/config.h"

namespace rivulet {

struct Verdict {
  bool allowed = false;
  std::string reason;   // the classifier's, or what failed
  bool failed = false;  // late, crashed or unclear: `allowed` is then the policy's
};

// The command must not be empty. Returns within the time limit and what it takes to end the child.
Verdict ask_classifier(const ClassifierConfig& config, const std::string& text);

}  // namespace rivulet
