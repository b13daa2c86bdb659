// The include law: a folder includes only folders to its left in
// tensor, ops, nn, models, {train | quant}, apps. bench and tests see all, nobody sees them.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

const std::map<std::string, int> kRank = {{"tensor", 0}, {"ops", 1},   {"nn", 2},
                                          {"models", 3}, {"train", 4}, {"quant", 4},
                                          {"apps", 5},   {"bench", 6}, {"tests", 6}};

bool is_source(const fs::path& p) {
  const std::string e = p.extension().string();
  return e == ".h" || e == ".cpp" || e == ".cu" || e == ".cuh";
}

// "file:line: text" for every include of `file` (which lies in `folder`) that the law forbids.
std::vector<std::string> violations_of(const fs::path& file, const std::string& folder) {
  static const std::regex kInclude(R"(^\s*#\s*include\s*["<]([^">]+)[">])");
  std::vector<std::string> found;
  std::ifstream in(file);
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    std::smatch m;
    if (!std::regex_search(line, m, kInclude)) continue;
    fs::path target = fs::path(m[1].str()).lexically_normal();
    const bool climbs = target.begin() != target.end() && *target.begin() == "..";
    if (target.begin() != target.end() && *target.begin() == "rivulet")
      target = target.lexically_relative("rivulet");
    const auto to = kRank.find(target.begin()->string());
    const bool folder_target = to != kRank.end() && target.has_parent_path();
    const bool free_reader = folder == "bench" || folder == "tests";
    if (climbs || (folder_target && !free_reader && to->first != folder && to->second >= kRank.at(folder)) ||
        (folder_target && free_reader && to->first != folder && to->second == 6))
      found.push_back(file.string() + ":" + std::to_string(number) + ": " + line);
  }
  return found;
}

std::vector<std::string> violations_below(const fs::path& root, int& files) {
  std::vector<std::string> all;
  for (const auto& [folder, rank] : kRank) {
    if (!fs::exists(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (!entry.is_regular_file() || !is_source(entry.path())) continue;
      ++files;
      for (const auto& v : violations_of(entry.path(), folder)) all.push_back(v);
    }
  }
  return all;
}

}  // namespace

TEST_CASE("the source tree keeps the include law") {
  int files = 0;
  const auto found = violations_below(RIVULET_SOURCE_DIR, files);
  std::ostringstream text;
  for (const auto& v : found) text << v << '\n';
  INFO(text.str());
  CHECK(found.empty());
  CHECK(files > 20);
}

TEST_CASE("the check itself finds upward, sideways and hidden includes") {
  const fs::path root = fs::temp_directory_path() / ("include_law_" + std::to_string(std::rand()));
  const auto write = [&](const char* name, const char* text) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  };
  write("ops/up.cpp", "#include <vector>\n#include \"tensor/tensor.h\"\n#include \"nn/module.h\"\n");
  write("train/sideways.h", "#include \"quant/search.h\"\n");
  write("models/deep/installed.cu", "  #  include <rivulet/apps/edit.h>\n");
  write("tensor/relative.h", "#include \"../ops/case.h\"\n");
  write("tensor/hidden.h", "#include \"tensor/../ops/case.h\"\n");
  write("apps/tests_are_private.cpp", "#include \"tests/helper.h\"\n");
  write("nn/fine.cpp", "#include \"ops/all.h\"\n#include \"nn/module.h\"\n#include <tensor>\n");
  write("tests/fine.cpp", "#include \"apps/edit.h\"\n#include \"tests/helper.h\"\n");
  int files = 0;
  const auto found = violations_below(root, files);
  fs::remove_all(root);
  CHECK(files == 8);
  REQUIRE(found.size() == 6);
  const auto caught = [&](const std::string& what) {
    return std::any_of(found.begin(), found.end(),
                       [&](const std::string& v) { return v.find(what) != std::string::npos; });
  };
  CHECK(caught("up.cpp:3:"));
  CHECK(caught("sideways.h:1:"));
  CHECK(caught("installed.cu:1:"));
  CHECK(caught("relative.h:1:"));
  CHECK(caught("hidden.h:1:"));
  CHECK(caught("tests_are_private.cpp:1:"));
}
