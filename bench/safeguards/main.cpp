// safeguards-bench CLIPS... [--text FILE]... [--photos FILE...] [--json FILE]: measured rates of the
// safeguards.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>

#include "bench/machine.h"
#include "bench/safeguards/rates.h"
#include "tensor/error.h"
#include "tensor/parallel.h"

int main(int argc, char** argv) {
  using namespace rivulet;
  CLI::App app("Measures what the safeguards achieve on real clips.", "safeguards-bench");
  std::vector<std::string> clips, texts, photos;
  std::string json;
  int64_t clean = 10000;
  app.add_option("clips", clips, "Video files")->required();
  app.add_option("--text", texts, "Files of harmless English, screened line by line");
  app.add_option("--photos", photos, "Pictures that show other things, for the bound on drift");
  app.add_option("--clean", clean, "Frames without a mark to read")->check(CLI::PositiveNumber);
  app.add_option("--json", json, "Write the figures here");
  CLI11_PARSE(app, argc, argv);
  try {
    nlohmann::json result = {{"cpu", bench::cpu_model()}, {"threads", num_threads()}};
    result["screen"] = bench::screen_rates(texts);
    result["mark"] = bench::mark_rates(clips, clean);
    result["monitor"] = bench::monitor_rates(clips, photos);
    for (const std::string& c : clips) result["clips"].push_back(c.substr(c.rfind('/') + 1));
    if (json.empty()) {
      std::cout << result.dump(2) << "\n";
    } else {
      std::ofstream out(json);
      out << result.dump(2) << "\n";
      check(out.good(), json, ": cannot be written");
    }
  } catch (const std::exception& e) {
    std::cerr << "safeguards-bench: " << e.what() << "\n";
    return 2;
  }
  return 0;
}
