// Screening of instructions: text is brought to a plain form in which spelling tricks are gone, and rule sets
// are looked for in it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/safeguards/config.h"

namespace rivulet {

// The words of a text in plain form: NFKC with case folded, marks and invisible characters dropped,
// look-alike letters (Unicode's confusables) turned into Latin ones. Letters spaced out one by one ("b o m
// b", "b-o-m-b") become one word. Throws Error on text that is not UTF-8.
std::vector<std::string> plain_words(const std::string& text);

// Other readings of a plain word: digits and signs read as the letters they stand for ("b0mb", "k!ll") and
// runs of one letter shortened ("kiiill"). The word itself is not among them.
std::vector<std::string> readings(const std::string& word);

struct Match {
  std::string rule;      // "violence/behead*"
  std::string category;  // "violence"
};

class Screen {
 public:
  // Throws on a term that has no letters.
  explicit Screen(const ScreenConfig& config);
  // The first rule that the text breaks, in the order of the rule sets; "length" and "encoding" are rules
  // too.
  std::optional<Match> find(const std::string& text) const;

 private:
  struct Term {
    std::vector<std::string> words;
    bool open;  // any continuation of the last word
    Match match;
  };
  bool found_at(const Term& term, const std::vector<std::vector<std::string>>& words, size_t at) const;
  int64_t longest_;
  std::vector<std::vector<std::string>> allowed_;
  std::vector<Term> terms_;
};

// Asks an external classifier: a child process that reads the instruction (UTF-8, one line, ended by the end
// of its input) and answers "allow" or "refuse [reason]" on its first line of output, with exit code 0.
struct Verdict {
  bool allowed;
  std::string reason;  // the classifier's, or what failed
  bool failed;         // late, crashed or unclear: `allowed` is the policy's
};
Verdict ask_classifier(const ClassifierConfig& config, const std::string& text);

}  // namespace rivulet
