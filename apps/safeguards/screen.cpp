#include "apps/safeguards/screen.h"

#include <algorithm>
#include <set>

#include "tensor/error.h"

namespace rivulet {
namespace {

const std::string kSigns = "@$!|+";

// What a digit or sign may stand for; empty for what stands for itself.
std::string letters_for(char c) {
  switch (c) {
    case '0':
      return "o";
    case '1':
      return "il";
    case '3':
      return "e";
    case '4':
      return "a";
    case '5':
      return "s";
    case '7':
      return "t";
    case '8':
      return "b";
    case '9':
      return "g";
    case '@':
      return "a";
    case '$':
      return "s";
    case '!':
      return "il";
    case '|':
      return "il";
    case '+':
      return "t";
    default:
      return "";
  }
}

bool has_letter(const std::string& word) {
  return std::any_of(word.begin(), word.end(), [](unsigned char c) { return c > 127 || std::isalpha(c); });
}

// Twice, so that the ambiguous 1 is read as i throughout and as l throughout.
std::string read_as_letters(const std::string& word, size_t choice) {
  std::string text;
  for (char c : word) {
    const std::string letters = letters_for(c);
    text += letters.empty() ? c : letters[std::min(choice, letters.size() - 1)];
  }
  return text;
}

std::string shorten_runs(const std::string& word, size_t to) {
  std::string text;
  for (size_t i = 0; i < word.size();) {
    size_t end = i;
    while (end < word.size() && word[end] == word[i]) ++end;
    text.append(end - i >= 3 ? to : end - i, word[i]);
    i = end;
  }
  return text;
}

std::string without_outer_signs(const std::string& word) {
  const size_t first = word.find_first_not_of(kSigns), last = word.find_last_not_of(kSigns);
  return first == std::string::npos ? word : word.substr(first, last - first + 1);
}

// Hyphens and dots inside a word are dropped, so that its halves are one word.
std::string joined_text(const std::string& text) {
  std::string joined;
  for (char c : text)
    if (c != '-' && c != '.' && c != '_' && c != '*' && c != '\'') joined += c;
  return joined;
}

using Readings = std::vector<std::vector<std::string>>;

Readings all_readings(const std::vector<std::string>& words) {
  Readings all;
  for (const std::string& w : words) all.push_back(readings(w));
  return all;
}

bool reads_as(const std::vector<std::string>& word, const std::string& wanted, bool open) {
  return std::any_of(word.begin(), word.end(), [&](const std::string& r) {
    return open ? r.compare(0, wanted.size(), wanted) == 0 : r == wanted;
  });
}

}  // namespace

std::vector<std::string> readings(const std::string& word) {
  std::set<std::string> found = {without_outer_signs(word)};
  for (const std::string& w : {word, without_outer_signs(word)})
    if (has_letter(w))
      for (size_t choice : {0, 1}) found.insert(read_as_letters(w, choice));
  for (const std::string& w : std::vector<std::string>(found.begin(), found.end()))
    for (size_t length : {1, 2}) found.insert(shorten_runs(w, length));
  return {found.begin(), found.end()};
}

Screen::Term Screen::term(const std::string& text) {
  Term t;
  t.open = !text.empty() && text.back() == '*';
  t.words = plain_words(text.substr(0, text.size() - t.open));
  for (const std::string& w : t.words) t.joined += w;
  check(!t.words.empty() && has_letter(t.words.back()), "screen: the term '", text, "' has no letters");
  return t;
}

Screen::Screen(const ScreenConfig& config) : config_(config) {
  for (const std::string& phrase : config.allowed) allowed_.push_back(term(phrase));
  for (const RuleSet& set : config.rules)
    for (const std::string& text : set.terms) {
      terms_.push_back(term(text));
      terms_.back().match = {set.category + "/" + text, set.category};
    }
}

std::optional<Match> Screen::find_in(const std::vector<std::string>& words) const {
  Readings text = all_readings(words);
  const auto at = [&](const Term& t, size_t begin) {
    if (reads_as(text[begin], t.joined, t.open)) return true;
    if (begin + t.words.size() > text.size()) return false;
    for (size_t i = 0; i < t.words.size(); ++i)
      if (!reads_as(text[begin + i], t.words[i], t.open && i + 1 == t.words.size())) return false;
    return true;
  };
  for (const Term& t : allowed_)
    for (size_t i = 0; i < text.size(); ++i)
      if (at(t, i))
        for (size_t k = i; k < std::min(i + t.words.size(), text.size()); ++k) text[k].clear();
  for (const Term& t : terms_)
    for (size_t i = 0; i < text.size(); ++i)
      if (at(t, i)) return t.match;
  return std::nullopt;
}

std::optional<Match> Screen::find(const std::string& text) const {
  if (!config_.enabled) return std::nullopt;
  const auto code_points = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  if (code_points > config_.longest) return Match{"text/length", "text"};
  std::vector<std::string> words;
  try {
    words = plain_words(text);
  } catch (const Error&) {
    return Match{"text/encoding", "text"};
  }
  if (const auto found = find_in(words)) return found;
  return find_in(plain_words(joined_text(text)));
}

}  // namespace rivulet
