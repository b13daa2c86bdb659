// rivulet selftest: every op against the CPU in f64, and our models against the reference's golden files.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <regex>

#include "apps/commands.h"
#include "models/golden.h"
#include "ops/all.h"
#include "ops/parity.h"
#include "tensor/cuda.h"

namespace rivulet {
namespace {

struct Tally {
  int passed = 0, failed = 0;
  void count(bool ok) { ++(ok ? passed : failed); }
};

std::regex pattern_of(const std::string& text) {
  try {
    return std::regex(text);
  } catch (const std::regex_error&) {
    fail("selftest: the filter '", text, "' is no regular expression");
  }
}

// Small odd shapes, degenerate ones and strided views; on the GPU also the production shapes.
void check_ops(const SelftestOptions& options, Device device, Tally& tally) {
  std::printf("%-22s %-5s %-6s %9s %9s %6s\n", "op", "dtype", "shapes", "forward", "backward", "s");
  const std::regex filter = pattern_of(options.filter);
  const bool production = device == Device::cuda && !options.no_production;
  for (const OpCase* op : all_op_cases()) {
    if (!std::regex_search(op->name, filter)) continue;
    for (const bool bench : {false, true})
      for (const DType dtype : {DType::f32, DType::bf16}) {
        if (bench && !production) continue;
        const ParityRow row = check_parity(*op, device, dtype, bench);
        tally.count(row.passed());
        std::printf("%s\n", to_string(row).c_str());
        std::fflush(stdout);
      }
  }
}

void check_golden(const std::string& folder, Device device, Tally& tally) {
  namespace fs = std::filesystem;
  check(fs::is_directory(folder), folder, ": not a folder");
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  check(!files.empty(), folder, ": holds no .safetensors file");
  std::printf("%-36s %-5s %-16s %8s %12s %12s\n", "file", "dtype", "compared", "tensors", "worst error",
              "tolerance");
  for (const fs::path& path : files)
    for (const DType dtype : {DType::f32, DType::bf16}) {
      if (dtype == DType::bf16 && device != Device::cuda) continue;
      const auto rows = run_golden(SafeTensors(path.string()), device, dtype);
      if (rows.empty() && dtype == DType::f32)
        std::printf("%-36s (no model here for this file)\n", path.filename().c_str());
      for (const GoldenRow& row : rows) {
        tally.count(row.passed());
        std::printf("%-36s %-5s %-16s %8lld %12.2e %12.1e  %s\n", path.filename().c_str(), name_of(dtype),
                    row.what.c_str(), static_cast<long long>(row.compared), row.worst, row.tolerance,
                    row.passed() ? "ok" : ("FAILED at " + row.worst_name).c_str());
      }
      std::fflush(stdout);
    }
}

}  // namespace

int run_selftest(const SelftestOptions& options) {
  const Device device = device_named(options.device);
  check(device != Device::cuda || cuda_available(),
        "selftest: this machine has no GPU that the kernels run on");
  if constexpr (kHasCuda)
    if (device == Device::cuda) std::printf("on %s\n", cuda::device_name().c_str());
  Tally tally;
  check_ops(options, device, tally);
  if (!options.golden.empty()) check_golden(options.golden, device, tally);
  std::printf("%d passed, %d failed\n", tally.passed, tally.failed);
  return tally.failed == 0 && tally.passed > 0 ? 0 : 1;
}

}  // namespace rivulet
