// rivulet selftest: our models against the reference's golden files.
#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "apps/commands.h"
#include "models/golden.h"

namespace rivulet {

int run_selftest(const SelftestOptions& options) {
  namespace fs = std::filesystem;
  const Device device = device_named(options.device);
  check(fs::is_directory(options.golden), options.golden, ": not a folder");
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(options.golden))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  check(!files.empty(), options.golden, ": holds no .safetensors file");
  std::printf("%-36s %-16s %8s %12s %12s  %s\n", "file", "compared", "tensors", "worst error", "tolerance",
              "verdict");
  int failed = 0, passed = 0;
  for (const fs::path& path : files) {
    const auto rows = run_golden(SafeTensors(path.string()), device);
    if (rows.empty()) std::printf("%-36s %-16s\n", path.filename().c_str(), "(no model here for this file)");
    for (const GoldenRow& row : rows) {
      ++(row.passed() ? passed : failed);
      std::printf("%-36s %-16s %8lld %12.2e %12.0e  %s\n", path.filename().c_str(), row.what.c_str(),
                  static_cast<long long>(row.compared), row.worst, row.tolerance,
                  row.passed() ? "ok" : ("FAILED at " + row.worst_name).c_str());
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace rivulet
