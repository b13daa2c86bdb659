// Screening of instructions: text is brought to a plain form in which spelling tricks are gone, and rule sets
// are looked for in it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/safeguards/config.h"

namespace rivulet {

// The words of a text in plain form: NFKC with case folded, marks and invisible characters dropped,
// look-alike letters (Unicode's confusables) turned into Latin ones. Signs that stand for letters ("k!ll",
// "a$$") are part of a word, all others part words. Letters that stand alone, three or more in a row ("b o m
// b", "b-o-m-b"), make one word. Throws Error on text that is not UTF-8.
std::vector<std::string> plain_words(const std::string& text);

// The ways to read a plain word: without the signs around it, with digits and signs as the letters they stand
// for
// ("b0mb"), and with runs of three and more of one letter shortened to two and to one ("kiiill").
std::vector<std::string> readings(const std::string& word);

struct Match {
  std::string rule;      // "violence/behead*"
  std::string category;  // "violence"
};

class Screen {
 public:
  // Throws on a term that has no letters.
  explicit Screen(const ScreenConfig& config);
  // The first rule that the text breaks, in the order of the rule sets; "text/length" and "text/encoding" are
  // rules too.
  std::optional<Match> find(const std::string& text) const;

 private:
  struct Term {
    std::vector<std::string> words;
    std::string joined;  // the words without spaces, which is another way to write them
    bool open = false;   // any continuation of the last word
    Match match;
  };
  static Term term(const std::string& text);
  std::optional<Match> find_in(const std::vector<std::string>& words) const;

  ScreenConfig config_;
  std::vector<Term> allowed_, terms_;
};

}  // namespace rivulet
