#include "nn/config.h"

#include <algorithm>
#include <cmath>

#include "tensor/error.h"
#include "tensor/safetensors.h"

namespace rivulet {
namespace {

// Names a JSON value in an error without printing a whole object.
std::string shown(const Json& j) {
  if (j.is_object()) return "an object";
  if (j.is_array()) return "a list";
  const std::string text = j.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

std::string list_of(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& w : words) text += (text.empty() ? "" : ", ") + w;
  return text;
}

// [low, high] in words, with integers written as such.
std::string words_of(const Range& r) {
  std::ostringstream text;
  if (std::isfinite(r.low)) text << (r.low_open ? "above " : "at least ") << r.low;
  if (std::isfinite(r.low) && std::isfinite(r.high)) text << " and ";
  if (std::isfinite(r.high)) text << (r.high_open ? "below " : "at most ") << r.high;
  return text.str();
}

}  // namespace

Json parse_json(const std::string& text, const std::string& source) {
  std::vector<std::set<std::string>> open;  // the keys seen so far of each enclosing object
  auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) open.emplace_back();
    if (event == Json::parse_event_t::object_end) open.pop_back();
    if (event == Json::parse_event_t::key) {
      const std::string key = parsed.get<std::string>();
      check(open.back().insert(key).second, source, ": the field ", key, " stands twice in one object");
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& e) {
    fail(source, ": not valid JSON: ", e.what());
  }
}

Json read_json(const std::string& path) { return parse_json(read_file(path), path); }

Fields::Fields(Json value, std::string source, std::string path)
    : object_(std::move(value)), source_(std::move(source)), path_(std::move(path)) {
  check(object_.is_object(), source_, ": ", path_.empty() ? "the file" : path_, " must be an object, not ",
        shown(object_));
}

std::string Fields::where(const std::string& name) const { return source_ + ": " + joined(name); }

bool Fields::note(const std::string& name) {
  known_.insert(name);
  return object_.contains(name);
}

const Json& Fields::need(const std::string& name) {
  check(note(name), where(name), " is missing");
  return object_[name];
}

void Fields::convert(const Json& j, const std::string& name, bool& value) const {
  check(j.is_boolean(), where(name), " must be true or false, not ", shown(j));
  value = j.get<bool>();
}

void Fields::convert(const Json& j, const std::string& name, int64_t& value) const {
  constexpr double kLimit = 9007199254740992.0;  // 2^53: beyond it a double is no longer exact
  const bool number = j.is_number(), whole = number && std::trunc(j.get<double>()) == j.get<double>();
  check(whole && std::abs(j.get<double>()) <= kLimit, where(name), " must be a whole number, not ", shown(j));
  value = j.is_number_integer() ? j.get<int64_t>() : static_cast<int64_t>(j.get<double>());
}

void Fields::convert(const Json& j, const std::string& name, double& value) const {
  check(j.is_number(), where(name), " must be a number, not ", shown(j));
  value = j.get<double>();
}

void Fields::convert(const Json& j, const std::string& name, std::string& value) const {
  check(j.is_string(), where(name), " must be a text, not ", shown(j));
  value = j.get<std::string>();
}

template <class T>
void Fields::convert(const Json& j, const std::string& name, std::vector<T>& value) const {
  check(j.is_array(), where(name), " must be a list, not ", shown(j));
  std::vector<T> list(j.size());
  for (size_t i = 0; i < j.size(); ++i) convert(j[i], name + "[" + std::to_string(i) + "]", list[i]);
  value = std::move(list);
}
template void Fields::convert(const Json&, const std::string&, std::vector<int64_t>&) const;
template void Fields::convert(const Json&, const std::string&, std::vector<double>&) const;
template void Fields::convert(const Json&, const std::string&, std::vector<std::string>&) const;

void Fields::in_range(const std::string& name, double value, const Range& r) const {
  const bool low = r.low_open ? value > r.low : value >= r.low;
  const bool high = r.high_open ? value < r.high : value <= r.high;
  check(low && high, where(name), " is ", value, ", must be ", words_of(r));
}

template <class T>
void Fields::in_range(const std::string& name, const std::vector<T>& values, const Range& r) const {
  for (size_t i = 0; i < values.size(); ++i)
    in_range(name + "[" + std::to_string(i) + "]", static_cast<double>(values[i]), r);
}
template void Fields::in_range(const std::string&, const std::vector<int64_t>&, const Range&) const;
template void Fields::in_range(const std::string&, const std::vector<double>&, const Range&) const;

void Fields::choice(const std::string& name, std::string& value, const std::vector<std::string>& words) {
  optional(name, value);
  check(std::find(words.begin(), words.end(), value) != words.end(), where(name), " is \"", value,
        "\", must be one of ", list_of(words));
}

Fields Fields::object(const std::string& name) {
  return {note(name) ? object_[name] : Json::object(), source_, joined(name)};
}

std::vector<Fields> Fields::objects(const std::string& name) {
  std::vector<Fields> list;
  if (!note(name)) return list;
  const Json& j = object_[name];
  check(j.is_array(), where(name), " must be a list, not ", shown(j));
  for (size_t i = 0; i < j.size(); ++i)
    list.push_back(Fields(j[i], source_, joined(name) + "[" + std::to_string(i) + "]"));
  return list;
}

Json Fields::raw(const std::string& name) { return note(name) ? object_[name] : Json(); }

void Fields::done() const {
  std::vector<std::string> unknown;
  for (const auto& [name, value] : object_.items())
    if (!known_.count(name)) unknown.push_back(joined(name));
  if (unknown.empty()) return;
  fail(source_, ": ", unknown.size() == 1 ? "unknown field " : "unknown fields ", list_of(unknown),
       " (known here: ", list_of({known_.begin(), known_.end()}), ")");
}

}  // namespace rivulet
