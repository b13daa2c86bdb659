// Reading JSON configuration strictly: every field is checked for type and range, and a field that nobody
// asked for is an error. Errors name the source and the full path: "brook.json: model.blocks[2].width ...".
//
//   Fields f(read_json(path), path);
//   f.required("steps", c.steps, at_least(1));
//   f.optional("lr", c.lr, above(0));
//   Fields model = f.object("model"); ...; model.done();
//   f.done();
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace rivulet {

using Json = nlohmann::json;

// Parses text; an error names `source`, and so does a key that stands twice in one object.
Json parse_json(const std::string& text, const std::string& source);
Json read_json(const std::string& path);

// The numbers a field may take; for a list it holds for every entry.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false, high_open = false;  // an open end is itself refused
};
inline Range at_least(double low) { return {.low = low}; }
inline Range above(double low) { return {.low = low, .low_open = true}; }
inline Range between(double low, double high) { return {.low = low, .high = high}; }
// low <= x < high
inline Range from_below(double low, double high) { return {.low = low, .high = high, .high_open = true}; }

class Fields {
 public:
  // `source` (a file name) opens every error. Throws unless `value` is a JSON object.
  Fields(Json value, std::string source) : Fields(std::move(value), std::move(source), "") {}

  bool has(const std::string& name) const { return object_.contains(name); }
  // "source: path.name", to open an error about a field that was read.
  std::string where(const std::string& name) const;

  // required: throws when the field is absent. optional: keeps the value it finds in `value`.
  // Whole numbers may be written as 1e5 or 3.0; null is never a value.
  template <class T>
  void required(const std::string& name, T& value) {
    convert(need(name), name, value);
  }
  template <class T>
  void required(const std::string& name, T& value, const Range& range) {
    required(name, value);
    in_range(name, value, range);
  }
  template <class T>
  void optional(const std::string& name, T& value) {
    if (note(name)) convert(object_[name], name, value);
  }
  template <class T>
  void optional(const std::string& name, T& value, const Range& range) {
    if (note(name)) required(name, value, range);
  }
  // A word out of a list.
  void choice(const std::string& name, std::string& value, const std::vector<std::string>& words);

  // Nested objects. A missing one reads as {}; a missing list as an empty one.
  Fields object(const std::string& name);
  std::vector<Fields> objects(const std::string& name);
  // The field as it stands, for whoever validates it; null when absent.
  Json raw(const std::string& name);

  // Throws one Error that names every field of this object that was never asked for.
  void done() const;

 private:
  Fields(Json value, std::string source, std::string path);
  bool note(const std::string& name);  // remembers that the name is known; is it there?
  const Json& need(const std::string& name);
  std::string joined(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }
  void convert(const Json& j, const std::string& name, bool& value) const;
  void convert(const Json& j, const std::string& name, int64_t& value) const;
  void convert(const Json& j, const std::string& name, double& value) const;
  void convert(const Json& j, const std::string& name, std::string& value) const;
  template <class T>
  void convert(const Json& j, const std::string& name, std::vector<T>& value) const;
  void in_range(const std::string& name, double value, const Range& range) const;
  template <class T>
  void in_range(const std::string& name, const std::vector<T>& values, const Range& range) const;

  Json object_;
  std::string source_, path_;
  std::set<std::string> known_;
};

}  // namespace rivulet
