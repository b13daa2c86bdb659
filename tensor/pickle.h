// Reading Python pickles (protocols 2 to 5) as plain data. No code of the file runs: a pickle may name
// functions and classes, and this reader only notes which ones, out of a list that the caller allows.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rivulet {

class Pickle {
 public:
  enum class Kind : uint8_t {
    none,
    boolean,
    integer,
    real,
    text,
    tuple,
    list,
    dict,
    global,
    call,
    persistent
  };
  struct Node {
    Kind kind = Kind::none;
    int64_t integer = 0;  // of a boolean too
    double real = 0;
    std::string text;  // of a text; "module.name" of a global and of a call of it
    // Elements of a tuple or list; the tuple of a call's arguments; the identifier of a persistent object.
    std::vector<const Node*> items;
    std::vector<std::pair<const Node*, const Node*>> pairs;  // of a dict, in the order written
    const Node* find(std::string_view key) const;            // of a dict; null when absent
  };

  // Throws an Error that opens with `source` on anything malformed, on a global for which `allowed` is false
  // (naming it), and on objects that are more than data. collections.OrderedDict is read as a dict.
  using Allowed = std::function<bool(const std::string& global)>;
  Pickle(std::string_view bytes, const std::string& source, const Allowed& allowed);
  Pickle(const Pickle&) = delete;
  Pickle& operator=(const Pickle&) = delete;
  const Node& root() const { return *root_; }

 private:
  friend class PickleReader;
  std::deque<Node> nodes_;  // owns them all, since lists and dicts may hold each other
  const Node* root_ = nullptr;
};

const char* name_of(Pickle::Kind kind);

}  // namespace rivulet
