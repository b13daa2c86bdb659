// rivulet-bench: times every declared op and the bundled network beside what the machine can do, and refuses
// to give the speed of wrong results.
#include <benchmark/benchmark.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <regex>

#include "bench/creek.h"
#include "bench/gpu.h"
#include "bench/live.h"
#include "bench/report.h"
#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tensor/safetensors.h"

namespace rivulet::bench {
namespace {

// Collects the seconds of every repetition; the tables are ours.
class Collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs)
      if (run.run_type == Run::RT_Iteration)
        timing.seconds.push_back(run.real_accumulated_time / double(run.iterations));
  }
  Timing timing;
};

Timing time_row(const Row& row, const Settings& settings) {
  benchmark::ClearRegisteredBenchmarks();
  benchmark::RegisterBenchmark("row",
                               [&row](benchmark::State& state) {
                                 for (auto _ : state) row.run();
                               })
      ->UseRealTime()
      ->MinWarmUpTime(settings.warm_up_s)
      ->MinTime(settings.repetition_s)
      ->Repetitions(settings.repetitions);
  Collector collector;
  benchmark::RunSpecifiedBenchmarks(&collector);
  std::sort(collector.timing.seconds.begin(), collector.timing.seconds.end());
  return collector.timing;
}

void print_row(const nlohmann::json& row, double spread) {
  const auto number = [&](const char* key, const char* format) {
    char buffer[32] = "-";
    if (row.contains(key)) std::snprintf(buffer, sizeof buffer, format, row.at(key).get<double>());
    return std::string(buffer);
  };
  std::printf("%12s %5.1f%% %8s %5s %9s %5s   %s%s\n", human_seconds(row.at("median_s")).c_str(),
              100 * spread, number("gb_s", "%.2f").c_str(), number("copy_percent", "%.0f%%").c_str(),
              number("gflop_s", "%.2f").c_str(), number("fma_percent", "%.0f%%").c_str(),
              row.at("name").get<std::string>().c_str(),
              row.contains("frames_s") ? (": " + number("frames_s", "%.2f frames/s")).c_str() : "");
  std::fflush(stdout);
}

// Times the rows and returns the result file; `red` counts those whose results are wrong.
nlohmann::json run_rows(const std::vector<Row>& rows, const Settings& settings, int& red) {
  const Machine machine = measure_machine();
  nlohmann::json file = result_file(machine, settings);
  std::printf("%s, %d threads: copies %.1f GB/s, multiply-adds %.1f GFLOP/s\n", machine.cpu.c_str(),
              machine.threads, machine.copy_gb_s, machine.fma_gflop_s);
  std::printf("%12s %6s %8s %5s %9s %5s   %s\n", "median", "+-", "GB/s", "copy", "GFLOP/s", "fma", "work");
  for (const Row& row : rows) {
    if (const std::string wrong = row.red ? row.red() : ""; !wrong.empty()) {
      ++red;
      std::printf("%12s %s: %s\n", "RED", row.name.c_str(), wrong.c_str());
      file["rows"].push_back({{"name", row.name}, {"op", row.op}, {"red", wrong}});
      continue;
    }
    const Timing timing = time_row(row, settings);
    file["rows"].push_back(to_json(row, timing, machine));
    print_row(file["rows"].back(), timing.spread());
  }
  return file;
}

nlohmann::json load(const std::string& path) {
  try {
    return nlohmann::json::parse(read_file(path));
  } catch (const nlohmann::json::exception& e) {
    fail(path, ": ", e.what());
  }
}

int main_of(int argc, char** argv) {
  CLI::App app{"Times every declared op of rivulet and its bundled network"};
  Settings settings;
  std::string filter = "", json_path, save_path;
  std::vector<std::string> files;
  bool list = false, backward = false, train = false, layers = false, creek = false;
  std::string device = "cpu", dtype = "bf16";
  int threads = 0;
  int64_t depth = 20;
  app.add_option("--filter", filter, "Only rows whose name matches this regular expression");
  app.add_option("--json", json_path, "Write the results to this file");
  app.add_option("--save", save_path,
                 "Write inputs, weights and results of the one matching row of the network to this "
                 "safetensors file and stop");
  app.add_option("--repetitions", settings.repetitions, "Repetitions per row")->check(CLI::Range(1, 1000));
  app.add_option("--seconds", settings.repetition_s, "Least seconds of a repetition")
      ->check(CLI::PositiveNumber);
  app.add_option("--threads", threads, "CPU threads")->check(CLI::Range(1, 1024));
  app.add_flag("--backward", backward, "Time the ops, forward and backward together");
  double live = 0;
  app.add_option("--live", live, "Measure `rivulet serve` under a camera for this many seconds and stop")
      ->check(CLI::Range(5.0, 86400.0));
  app.add_option("--device", device, "cpu (the default) or cuda");
  app.add_option("--dtype", dtype, "Of the rows on cuda: bf16 (the default) or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  app.add_flag("--train", train, "Time a training step of the 2B network instead; needs --device cuda");
  app.add_flag("--layers", layers,
               "Time the layers of the 2B network that the reference was timed on; needs --device cuda");
  app.add_flag("--creek", creek, "Time training and running creek instead; needs --device cuda");
  app.add_option("--depth", depth, "Blocks of that network")->check(CLI::Range(1, 20));
  app.add_flag("--list", list, "Print the names of the rows and stop");
  app.add_option("--compare", files, "Print the table of two result files, ours and theirs")->expected(2);
  CLI11_PARSE(app, argc, argv);

  if (!files.empty()) {
    std::fputs(compare(load(files[0]), load(files[1])).c_str(), stdout);
    return 0;
  }
  if (live > 0) {
    const nlohmann::json file = measure_live({.seconds = live});
    std::puts(file.at("live").dump(2).c_str());
    if (!json_path.empty()) write_file(json_path, file.dump(2) + "\n");
    return 0;
  }
  if (threads > 0) set_threads(threads);
  check(!(train || layers || creek) || device == "cuda", train ? "--train" : layers ? "--layers" : "--creek",
        " needs --device cuda");
  if (device_named(device) == Device::cuda) {
    int wrong = 0;
    const GpuSettings gpu{dtype == "f32" ? DType::f32 : DType::bf16, settings.repetitions, backward};
    const nlohmann::json file = train    ? time_training_step(settings.repetitions, depth)
                                : layers ? time_layers(settings.repetitions, wrong)
                                : creek  ? time_creek(settings.repetitions)
                                         : run_on_gpu(std::regex(filter), gpu, wrong);
    if (!json_path.empty()) write_file(json_path, file.dump(2) + "\n");
    return wrong > 0 ? 1 : 0;
  }
  std::vector<Row> rows = op_rows(backward);
  if (!backward) {
    for (Row& row : network_rows()) rows.push_back(std::move(row));
    rows.push_back(video_row());
  }
  const std::regex pattern(filter);
  std::erase_if(rows, [&](const Row& r) { return !std::regex_search(r.name, pattern); });
  check(!rows.empty(), "no row matches '", filter, "'");
  if (list) {
    for (const Row& r : rows) std::puts(r.name.c_str());
    return 0;
  }
  if (!save_path.empty()) {
    check(rows.size() == 1 && rows[0].save, "--save: ", rows.size(), " rows match '", filter,
          "', one row of the network is needed");
    rows[0].save(save_path);
    return 0;
  }
  int red = 0;
  const nlohmann::json file = run_rows(rows, settings, red);
  if (!json_path.empty()) write_file(json_path, file.dump(2) + "\n");
  if (red > 0) std::fprintf(stderr, "%d rows gave wrong results; their speed is withheld\n", red);
  return red > 0 ? 1 : 0;
}

}  // namespace
}  // namespace rivulet::bench

int main(int argc, char** argv) {
  try {
    return rivulet::bench::main_of(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rivulet-bench: %s\n", e.what());
    return 2;
  }
}
