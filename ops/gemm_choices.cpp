#include "ops/gemm_choices.h"

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tensor/safetensors.h"

namespace rivulet {
namespace {

using nlohmann::json;
constexpr const char* kKind = "rivulet gemm choices";
constexpr int kFormat = 1;

thread_local GemmScope::Current in_scope;

}  // namespace

std::string GemmChoices::default_path(const std::string& gpu, int64_t version) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  std::string folder;
  if (cache != nullptr && *cache != 0)
    folder = cache;
  else if (home != nullptr && *home != 0)
    folder = std::string(home) + "/.cache";
  else
    return "";
  std::string name = gpu;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return folder + "/rivulet/gemm-" + name + "-" + std::to_string(version) + ".json";
}

GemmChoices::GemmChoices(std::string path, std::string gpu, int64_t version)
    : path_(std::move(path)), gpu_(std::move(gpu)), version_(version) {
  std::error_code error;
  if (path_.empty() || !std::filesystem::exists(path_, error)) return;
  try {
    const json file = json::parse(read_file(path_));
    check(file.at("kind") == kKind && file.at("format") == kFormat, "not a file of gemm choices");
    check(file.at("gpu") == gpu_ && file.at("cublaslt") == version_, "made for ",
          file.at("gpu").get<std::string>(), " and cuBLASLt ", file.at("cublaslt").get<int64_t>(),
          ", here are ", gpu_, " and ", version_);
    std::map<Key, GemmChoice> read;
    for (const json& row : file.at("choices")) {
      GemmChoice c;
      row.at("algorithm").get_to(c.algorithm);
      row.at("configuration").get_to(c.configuration);
      row.at("best_us").get_to(c.best_us);
      row.at("first_us").get_to(c.first_us);
      read[row.at("key").get<Key>()] = c;
    }
    choices_ = std::move(read);
  } catch (const std::exception& e) {
    ignored_ = path_ + ": ignored: " + e.what();
  }
}

const GemmChoice* GemmChoices::find(const Key& key) const {
  const auto at = choices_.find(key);
  return at == choices_.end() ? nullptr : &at->second;
}

void GemmChoices::put(const Key& key, const GemmChoice& choice) {
  choices_[key] = choice;
  changed_ = true;
}

void GemmChoices::save() {
  if (path_.empty() || !changed_) return;
  json rows = json::array();
  for (const auto& [key, c] : choices_)
    rows.push_back({{"key", key},
                    {"algorithm", c.algorithm},
                    {"configuration", c.configuration},
                    {"best_us", c.best_us},
                    {"first_us", c.first_us}});
  const json file = {
      {"kind", kKind}, {"format", kFormat}, {"gpu", gpu_}, {"cublaslt", version_}, {"choices", rows}};
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), error);
  write_file(path_, file.dump(1) + "\n");
  changed_ = false;
}

GemmScope::GemmScope(GemmChoices& choices, bool time_new) : previous_(in_scope) {
  in_scope = {&choices, time_new};
}
GemmScope::~GemmScope() { in_scope = previous_; }
GemmScope::Current GemmScope::current() { return in_scope; }

}  // namespace rivulet
