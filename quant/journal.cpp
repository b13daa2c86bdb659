#include "quant/journal.h"

#include <filesystem>
#include <fstream>
#include <map>

#include "tensor/safetensors.h"

namespace rivulet {

namespace fs = std::filesystem;

Journal::Journal(const std::string& dir, const Json& settings) : dir_(dir) {
  std::error_code error;
  fs::create_directories(fs::path(dir) / "errors", error);
  check(!error, dir, ": cannot be made: ", error.message());
  const std::string file = path("settings.json");
  if (fs::exists(file)) {
    const Json earlier = read_json(file);
    for (const auto& [key, value] : settings.items())
      check(earlier.contains(key) && earlier[key] == value, dir, ": holds a search with another ", key,
            "; name another folder or remove this one");
  } else {
    write_file(file, settings.dump(2) + "\n");
  }
  std::ifstream in(path("measured.jsonl"));
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const Json row = Json::parse(line, nullptr, false);
    if (row.is_discarded() || !row.is_object() || !row.contains("key") || !row.contains("values")) break;
    measured_[row["key"].get<std::string>()] = row["values"].get<std::vector<double>>();
    kept += line + "\n";
  }
  if (fs::exists(path("measured.jsonl")))
    write_file(path("measured.jsonl"), kept);  // without a torn last line
}

std::optional<SingleErrors> Journal::single(const std::string& name) const {
  const std::string file = path("errors/" + name + ".safetensors");
  if (!fs::exists(file)) return std::nullopt;
  const SafeTensors tensors(file);
  return SingleErrors{tensors.get("free"), tensors.get("forced")};
}

void Journal::put_single(const std::string& name, const SingleErrors& errors) {
  save_safetensors(path("errors/" + name + ".safetensors"),
                   {{"free", errors.free}, {"forced", errors.forced}});
}

std::optional<std::vector<double>> Journal::measured(const std::string& key) const {
  const auto found = measured_.find(key);
  if (found == measured_.end()) return std::nullopt;
  return found->second;
}

void Journal::put_measured(const std::string& key, const std::vector<double>& values) {
  measured_[key] = values;
  std::ofstream out(path("measured.jsonl"), std::ios::app);
  out << Json{{"key", key}, {"values", values}}.dump() << "\n" << std::flush;
  check(bool(out), path("measured.jsonl"), ": cannot be written");
}

}  // namespace rivulet
