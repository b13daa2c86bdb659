#include "tensor/pickle.h"

#include <bit>
#include <cstring>
#include <unordered_map>

#include "tensor/error.h"

namespace rivulet {

namespace {
constexpr const char* kOrderedDict = "collections.OrderedDict";
// A pickle of a checkpoint holds some hundred bytes for each tensor.
constexpr size_t kMostNodes = 4 << 20;

// Text of a file that nobody vouches for, fit to be shown.
std::string shown(std::string_view text) {
  std::string out(text.substr(0, 80));
  for (char& c : out)
    if (c < ' ' || c > '~') c = '?';
  return out.size() < text.size() ? out + "..." : out;
}

}  // namespace

const char* name_of(Pickle::Kind kind) {
  constexpr const char* kNames[] = {
      "None",   "a boolean", "an integer", "a float", "a string",           "a tuple",
      "a list", "a dict",    "a global",   "a call",  "a persistent object"};
  return kNames[static_cast<int>(kind)];
}

const Pickle::Node* Pickle::Node::find(std::string_view key) const {
  for (const auto& [k, v] : pairs)
    if (k->kind == Kind::text && k->text == key) return v;
  return nullptr;
}

// The pickle machine: a stack of values with marks, and a memo.
class PickleReader {
 public:
  using Node = Pickle::Node;
  using Kind = Pickle::Kind;
  PickleReader(Pickle& out, std::string_view bytes, const std::string& source, const Pickle::Allowed& allowed)
      : out_(out), bytes_(bytes), source_(source), allowed_(allowed) {}

  const Node* run() {
    for (;;) {
      const auto op = uint8_t(take(1)[0]);
      if (op == '.') break;
      if (!constant(op) && !container(op) && !memory(op) && !object(op)) refuse(op);
    }
    check(stack_.size() == 1 && marks_.empty(), source_, ": the pickle ends with ", stack_.size(),
          " values instead of one");
    return stack_[0];
  }

 private:
  // --- The bytes.
  std::string_view take(uint64_t n) {
    check(n <= bytes_.size() - at_, source_, ": the pickle is cut short at byte ", at_);
    const std::string_view part = bytes_.substr(at_, n);
    at_ += n;
    return part;
  }
  uint64_t number(int bytes) {  // little-endian
    uint64_t n = 0;
    std::memcpy(&n, take(uint64_t(bytes)).data(), size_t(bytes));
    return n;
  }
  std::string_view line() {
    const size_t end = bytes_.find('\n', at_);
    check(end != bytes_.npos, source_, ": the pickle is cut short at byte ", at_);
    const std::string_view text = take(end - at_);
    ++at_;
    return text;
  }

  // --- The stack. Nothing below the last mark can be reached.
  size_t base() const { return marks_.empty() ? 0 : marks_.back(); }
  void push(Node* node) { stack_.push_back(node); }
  Node* pop() {
    check(stack_.size() > base(), source_, ": the pickle takes a value from an empty stack at byte ", at_);
    Node* node = stack_.back();
    stack_.pop_back();
    return node;
  }
  Node* top() {
    Node* node = pop();
    push(node);
    return node;
  }
  std::vector<const Node*> pop_to_mark() {
    check(!marks_.empty(), source_, ": the pickle looks for a mark that is not there at byte ", at_);
    std::vector<const Node*> items(stack_.begin() + int64_t(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  void spend() {
    check(++spent_ <= kMostNodes, source_, ": the pickle holds more than ", kMostNodes, " values");
  }
  Node* make(Kind kind) {
    spend();
    out_.nodes_.emplace_back();
    out_.nodes_.back().kind = kind;
    return &out_.nodes_.back();
  }
  void push_text(std::string_view text) {
    Node* node = make(Kind::text);
    node->text = text;
    push(node);
  }
  void push_integer(int64_t n, Kind kind = Kind::integer) {
    Node* node = make(kind);
    node->integer = n;
    push(node);
  }
  void push_items(Kind kind, std::vector<const Node*> items) {
    Node* node = make(kind);
    node->items = std::move(items);
    push(node);
  }
  Node* need(Node* node, Kind kind, const char* what) {
    check(node->kind == kind, source_, ": the pickle needs ", name_of(kind), " for ", what, ", not ",
          name_of(node->kind));
    return node;
  }

  // --- The operations, by group. Each returns whether it knew the operation.
  bool constant(uint8_t op);
  bool container(uint8_t op);
  bool memory(uint8_t op);
  bool object(uint8_t op);
  void long_integer(uint64_t size);
  void set_pairs(Node* dict, const std::vector<const Node*>& flat);
  void push_global(const std::string& name);
  void reduce();
  void build();
  [[noreturn]] void refuse(uint8_t op) const {
    fail(source_, ": the pickle asks for operation ", int(op), " at byte ", at_ - 1,
         ", which builds more than plain data");
  }

  Pickle& out_;
  std::string_view bytes_;
  const std::string& source_;
  const Pickle::Allowed& allowed_;
  size_t at_ = 0, spent_ = 0;
  std::vector<Node*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, Node*> memo_;
};

void PickleReader::long_integer(uint64_t size) {
  check(size <= 8, source_, ": the pickle holds an integer of ", size, " bytes");
  const uint64_t n = number(int(size));
  const int unused = 64 - 8 * int(size);
  push_integer(size == 0 ? 0 : int64_t(n << unused) >> unused);
}

bool PickleReader::constant(uint8_t op) {
  switch (op) {
    case 0x80: {  // PROTO
      const uint64_t protocol = number(1);
      check(protocol >= 2 && protocol <= 5, source_, ": pickle protocol ", protocol, " is not one of 2 to 5");
      return true;
    }
    case 0x95: {  // FRAME: a hint for readers of streams
      number(8);
      return true;
    }
    case 'N':
      push(make(Kind::none));
      return true;
    case 0x88:
    case 0x89:
      push_integer(op == 0x88, Kind::boolean);
      return true;
    case 'J':
      push_integer(int32_t(uint32_t(number(4))));
      return true;
    case 'K':
      push_integer(int64_t(number(1)));
      return true;
    case 'M':
      push_integer(int64_t(number(2)));
      return true;
    case 0x8a:
      long_integer(number(1));
      return true;
    case 0x8b:
      long_integer(number(4));
      return true;
    case 'G': {  // big-endian
      Node* node = make(Kind::real);
      node->real = std::bit_cast<double>(__builtin_bswap64(number(8)));
      push(node);
      return true;
    }
    case 0x8c:
    case 'U':
    case 'C':
      push_text(take(number(1)));
      return true;
    case 'X':
    case 'T':
    case 'B':
      push_text(take(number(4)));
      return true;
    case 0x8d:
    case 0x8e:
      push_text(take(number(8)));
      return true;
    default:
      return false;
  }
}

void PickleReader::set_pairs(Node* dict, const std::vector<const Node*>& flat) {
  check(flat.size() % 2 == 0, source_, ": the pickle gives a dict a key without a value");
  for (size_t i = 0; i < flat.size(); i += 2) dict->pairs.emplace_back(flat[i], flat[i + 1]);
}

bool PickleReader::container(uint8_t op) {
  switch (op) {
    case '(':
      marks_.push_back(stack_.size());
      return true;
    case ')':
      push(make(Kind::tuple));
      return true;
    case 't':
      push_items(Kind::tuple, pop_to_mark());
      return true;
    case 0x85:
    case 0x86:
    case 0x87: {
      std::vector<const Node*> items(size_t(op - 0x84));
      for (size_t i = items.size(); i-- > 0;) items[i] = pop();
      push_items(Kind::tuple, std::move(items));
      return true;
    }
    case ']':
      push(make(Kind::list));
      return true;
    case 'l':
      push_items(Kind::list, pop_to_mark());
      return true;
    case 'a': {
      const Node* item = pop();
      need(top(), Kind::list, "an appended value")->items.push_back(item);
      return true;
    }
    case 'e': {
      const auto items = pop_to_mark();
      Node* list = need(top(), Kind::list, "appended values");
      list->items.insert(list->items.end(), items.begin(), items.end());
      return true;
    }
    case '}':
      push(make(Kind::dict));
      return true;
    case 'd': {
      const auto flat = pop_to_mark();
      push(make(Kind::dict));
      set_pairs(top(), flat);
      return true;
    }
    case 's': {
      const Node* value = pop();
      const Node* key = pop();
      need(top(), Kind::dict, "a key")->pairs.emplace_back(key, value);
      return true;
    }
    case 'u': {
      const auto flat = pop_to_mark();
      set_pairs(need(top(), Kind::dict, "keys"), flat);
      return true;
    }
    default:
      return false;
  }
}

bool PickleReader::memory(uint8_t op) {
  const auto recall = [&](uint64_t key) {
    const auto it = memo_.find(key);
    check(it != memo_.end(), source_, ": the pickle recalls value ", key, ", which it never stored");
    push(it->second);
  };
  switch (op) {
    case '0':
      pop();
      return true;
    case '1':
      pop_to_mark();
      return true;
    case '2':
      push(top());
      return true;
    case 'q':
      memo_[number(1)] = top();
      return true;
    case 'r':
      memo_[number(4)] = top();
      return true;
    case 0x94:
      memo_[memo_.size()] = top();
      return true;
    case 'h':
      recall(number(1));
      return true;
    case 'j':
      recall(number(4));
      return true;
    default:
      return false;
  }
}

void PickleReader::push_global(const std::string& name) {
  check(name == kOrderedDict || allowed_(name), source_, ": the pickle asks for ", shown(name),
        ", which is not plain data; nothing was run");
  Node* node = make(Kind::global);
  node->text = name;
  push(node);
}

void PickleReader::reduce() {
  const Node* arguments = need(pop(), Kind::tuple, "arguments");
  const Node* function = need(pop(), Kind::global, "a function");
  if (function->text != kOrderedDict) {
    Node* call = make(Kind::call);
    call->text = function->text;
    call->items = {arguments};
    return push(call);
  }
  // Python 2 passed the contents as a list of pairs.
  Node* dict = make(Kind::dict);
  check(arguments->items.size() <= 1, source_, ": the pickle makes an OrderedDict of ",
        arguments->items.size(), " values");
  if (!arguments->items.empty())
    for (const Node* pair : arguments->items[0]->items) {
      spend();  // one list may be asked for many times
      check(pair->items.size() == 2, source_, ": the pickle makes an OrderedDict of something not a pair");
      dict->pairs.emplace_back(pair->items[0], pair->items[1]);
    }
  push(dict);
}

// The attributes of an OrderedDict, such as a state dict's _metadata: nothing here reads them.
void PickleReader::build() {
  const Node* state = pop();
  check(top()->kind == Kind::dict && (state->kind == Kind::dict || state->kind == Kind::none), source_,
        ": the pickle sets the state of ", name_of(top()->kind), ", which is not plain data");
}

bool PickleReader::object(uint8_t op) {
  switch (op) {
    case 'c': {
      const std::string module(line()), name(line());
      push_global(module + "." + name);
      return true;
    }
    case 0x93: {
      const Node* name = need(pop(), Kind::text, "a global's name");
      const Node* module = need(pop(), Kind::text, "a global's module");
      push_global(module->text + "." + name->text);
      return true;
    }
    case 'i': {  // INST: makes an object of a class
      const std::string module(line()), name(line());
      fail(source_, ": the pickle makes an object of ", shown(module + "." + name),
           ", which is not plain data; nothing was run");
    }
    case 'R':
    case 0x81:
      reduce();
      return true;
    case 'b':
      build();
      return true;
    case 'Q': {
      const Node* id = pop();
      push_items(Kind::persistent, {id});
      return true;
    }
    default:
      return false;
  }
}

Pickle::Pickle(std::string_view bytes, const std::string& source, const Allowed& allowed) {
  root_ = PickleReader(*this, bytes, source, allowed).run();
}

}  // namespace rivulet
