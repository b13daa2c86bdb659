// The program itself, run on a small network: for the tests of `rivulet edit`.
#pragma once

#include <algorithm>

#include "models/editor.h"
#include "tests/video_fixtures.h"

namespace rivulet {

// Untrained, so that it returns its source; knows the words "make", "it" and "night".
inline void save_small_model(const std::string& dir, const std::string& variant = "streaming") {
  EditModelConfig c = tiny_editor_config();
  c.name = "small";
  c.dit.variant = variant;
  c.patch = 8;
  c.dit.latent_channels = 192;
  c.instruction_tokens = 5;
  c.vocabulary = Vocabulary({"it", "make", "night"});
  EditModel model(c);
  Rng rng{1};
  model.initialise(rng);
  std::filesystem::create_directories(dir);
  model.save(dir);
}

struct Outcome {
  int code = 0;
  std::string out, err;
};

inline Outcome run_program(std::vector<std::string> argv) {
  Process child(argv, Pipes::output);
  Outcome o;
  char buffer[4096];
  for (int64_t n; (n = child.read(buffer, sizeof buffer)) > 0;) o.out.append(buffer, size_t(n));
  o.code = child.wait();
  o.err = child.last_words();
  return o;
}

inline Outcome rivulet_edit(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {RIVULET_BIN, "edit"});
  return run_program(arguments);
}

}  // namespace rivulet
