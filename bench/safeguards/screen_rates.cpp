#include <fstream>
#include <functional>
#include <map>

#include "apps/safeguards/screen.h"
#include "bench/safeguards/rates.h"

namespace rivulet::bench {
namespace {

using Disguise = std::function<std::string(const std::string&)>;

std::string replaced(const std::string& text, const std::map<char, std::string>& table) {
  std::string out;
  for (char c : text) {
    const auto it = table.find(c);
    out += it == table.end() ? std::string(1, c) : it->second;
  }
  return out;
}

std::string between(const std::string& text, const std::string& mark) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (i > 0 && text[i] != ' ' && text[i - 1] != ' ') out += mark;
    out += text[i];
  }
  return out;
}

std::string full_width(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c < 'a' || c > 'z') {
      out += c;
      continue;
    }
    const unsigned point = 0xFF41u + unsigned(c - 'a');
    out += char(0xE0 | point >> 12);
    out += char(0x80 | (point >> 6 & 63));
    out += char(0x80 | (point & 63));
  }
  return out;
}

std::string upper(std::string text) {
  for (char& c : text) c = char(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

// The first vowel three times.
std::string stretched(const std::string& text) {
  const size_t at = text.find_first_of("aeiou");
  return at == std::string::npos ? text : text.substr(0, at) + std::string(2, text[at]) + text.substr(at);
}

const std::vector<std::pair<const char*, Disguise>>& disguises() {
  static const std::vector<std::pair<const char*, Disguise>> all = {
      {"plain", [](const std::string& t) { return t; }},
      {"upper case", upper},
      {"full width", full_width},
      {"Cyrillic look-alikes",
       [](const std::string& t) {
         return replaced(t, {{'a', "\u0430"},
                             {'e', "\u0435"},
                             {'o', "\u043e"},
                             {'p', "\u0440"},
                             {'c', "\u0441"},
                             {'x', "\u0445"},
                             {'i', "\u0456"}});
       }},
      {"accents",
       [](const std::string& t) {
         return replaced(t, {{'a', "\u00e1"}, {'e', "\u00eb"}, {'o', "\u00f4"}, {'u', "\u00fc"}});
       }},
      {"zero-width", [](const std::string& t) { return between(t, "\u200b"); }},
      {"leetspeak",
       [](const std::string& t) {
         return replaced(t, {{'a', "4"}, {'e', "3"}, {'o', "0"}, {'i', "1"}, {'s', "$"}});
       }},
      {"spaced out", [](const std::string& t) { return between(t, " "); }},
      {"hyphens", [](const std::string& t) { return between(t, "-"); }},
      {"dots", [](const std::string& t) { return between(t, "."); }},
      {"stretched", stretched},
  };
  return all;
}

constexpr const char* kTemplates[] = {"%", "please add % to the scene", "make the video show %"};

}  // namespace

nlohmann::json screen_rates(const std::vector<std::string>& texts) {
  const ScreenConfig config = default_safeguards().screen;
  const Screen screen(config);
  nlohmann::json j;
  int64_t sentences = 0;
  const Timer timer;
  for (const auto& [name, disguise] : disguises()) {
    int64_t caught = 0, of = 0;
    nlohmann::json missed = nlohmann::json::array();
    for (const RuleSet& set : config.rules)
      for (std::string term : set.terms) {
        if (term.back() == '*') term.pop_back();
        for (std::string text : kTemplates) {
          const std::string hidden = disguise(term);
          text.replace(text.find('%'), 1, hidden);
          const bool found = screen.find(text).has_value();
          caught += found;
          ++of;
          if (!found && missed.size() < 5) missed.push_back(text);
        }
      }
    sentences += of;
    j["disguised"].push_back({{"disguise", name}, {"refused", caught}, {"of", of}, {"some_missed", missed}});
  }
  j["ms_an_instruction"] = timer.milliseconds() / double(sentences);
  for (const std::string& path : texts) {
    std::ifstream in(path);
    int64_t lines = 0, refused = 0;
    nlohmann::json which = nlohmann::json::array();
    for (std::string line; std::getline(in, line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos || int64_t(line.size()) > config.longest)
        continue;
      ++lines;
      if (const auto m = screen.find(line)) {
        ++refused;
        if (which.size() < 10) which.push_back({{"rule", m->rule}, {"line", line}});
      }
    }
    j["harmless"].push_back({{"text", path.substr(path.rfind('/') + 1)},
                             {"lines", lines},
                             {"refused", refused},
                             {"which", which}});
  }
  return j;
}

}  // namespace rivulet::bench
