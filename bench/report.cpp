#include "bench/report.h"

#include <cmath>
#include <cstdio>
#include <memory>
#include <sstream>

#include "ops/gemm_choices.h"
#include "tensor/cuda.h"

namespace rivulet::bench {

using nlohmann::json;

namespace {

std::string text(const char* format, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

// The commit the source tree stands at, with "-dirty" when it was changed since. Where there is no such tree,
// on another machine, the commit that was configured.
std::string commit() {
  const char* command =
      "git -C '" RIVULET_SOURCE_DIR "' describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command, "r"), ::pclose);
  char buffer[128] = "";
  if (!pipe || !std::fgets(buffer, sizeof buffer, pipe.get())) return RIVULET_COMMIT;
  std::string line = buffer;
  while (!line.empty() && line.back() == '\n') line.pop_back();
  return line;
}

// The op with the first two of its shapes, which tell the rows of an op apart well enough for a reader.
std::string short_name(const json& row) {
  std::ostringstream out;
  out << row.at("op").get<std::string>();
  const json& shapes = row.at("shapes");
  for (size_t i = 0; i < std::min<size_t>(shapes.size(), 2); ++i)
    out << ' ' << Shape(shapes[i].get<std::vector<int64_t>>());
  if (shapes.size() > 2) out << " ...";
  return out.str();
}

}  // namespace

double Timing::quantile(double q) const {
  const double at = q * double(seconds.size() - 1);
  const size_t low = size_t(at), high = std::min(low + 1, seconds.size() - 1);
  return seconds[low] + (at - double(low)) * (seconds[high] - seconds[low]);
}

std::string human_seconds(double s) {
  return s < 1e-3 ? text("%.1f us", s * 1e6) : s < 1 ? text("%.2f ms", s * 1e3) : text("%.2f s", s);
}

json to_json(const Row& row, const Timing& timing, const Machine& machine) {
  json shapes = json::array();
  for (const Shape& s : row.shapes) shapes.push_back(std::vector<int64_t>(s.begin(), s.end()));
  json out = {{"name", row.name},
              {"op", row.op},
              {"shapes", shapes},
              {"repetitions", timing.seconds.size()},
              {"median_s", timing.median()},
              {"spread", timing.spread()},
              {"p25_s", timing.quantile(0.25)},
              {"p75_s", timing.quantile(0.75)},
              {"min_s", timing.seconds.front()},
              {"max_s", timing.seconds.back()}};
  if (row.bytes > 0) {
    out["gb_s"] = row.bytes / timing.median() * 1e-9;
    out["copy_percent"] = 100 * row.bytes / timing.median() * 1e-9 / machine.copy_gb_s;
  }
  if (row.flops > 0) {
    out["gflop_s"] = row.flops / timing.median() * 1e-9;
    out["fma_percent"] = 100 * row.flops / timing.median() * 1e-9 / machine.fma_gflop_s;
  }
  if (row.frames > 0) out["frames_s"] = row.frames / timing.median();
  return out;
}

json result_file(const Machine& machine, const Settings& settings) {
  return {{"what", "rivulet"},
          {"commit", commit()},
          {"compiler", std::string("GCC ") + __VERSION__},
          {"cpu", machine.cpu},
          {"threads", machine.threads},
          {"copy_gb_s", machine.copy_gb_s},
          {"fma_gflop_s", machine.fma_gflop_s},
          {"dtype", "f32"},
          {"warm_up_s", settings.warm_up_s},
          {"repetition_s", settings.repetition_s},
          {"rows", json::array()}};
}

json gpu_result_file(DType dtype) {
  json file = {{"what", "rivulet"},
               {"commit", commit()},
               {"compiler", std::string("GCC ") + __VERSION__},
               {"dtype", name_of(dtype)},
               {"rows", json::array()}};
  if constexpr (kHasCuda) {
    file["gpu"] = cuda::device_name();
    file["cuda_driver"] = cuda::driver_version();
    file["cublaslt"] = cuda::cublaslt_version();
  }
  return file;
}

std::string compare(const json& ours, const json& theirs) {
  std::ostringstream out;
  const std::string a = ours.at("what"), b = theirs.at("what");
  out << "| work (f32, " << ours.at("threads") << " threads) | " << a << " | " << b << " | ratio |\n"
      << "|---|---:|---:|---:|\n";
  for (const json& row : ours.at("rows")) {
    if (!row.contains("median_s")) continue;
    for (const json& other : theirs.at("rows")) {
      if (other.at("name") != row.at("name") || !other.contains("median_s")) continue;
      const double x = row.at("median_s"), y = other.at("median_s");
      out << "| " << short_name(row) << " | " << human_seconds(x) << " | " << human_seconds(y) << " | "
          << text("%.2f", y / x) << " |\n";
    }
  }
  return out.str();
}

}  // namespace rivulet::bench
