// rivulet inspect: what is in a model, a checkpoint or a config, without running it.
#include <cstdio>
#include <filesystem>

#include "apps/commands.h"
#include "models/edit_model.h"

namespace rivulet {
namespace {

// 2240 -> "2,240"
std::string grouped(int64_t n) {
  std::string s = std::to_string(n);
  for (int i = int(s.size()) - 3; i > 0; i -= 3) s.insert(size_t(i), ",");
  return s;
}

void print_tensors(const NamedTensors& tensors) {
  for (const auto& [name, t] : tensors) {
    std::ostringstream shape;
    shape << t.shape();
    std::printf("  %-52s %-5s %s\n", name.c_str(), name_of(t.dtype()), shape.str().c_str());
  }
}

void print_totals(const NamedTensors& tensors) {
  const int64_t n = count_elements(tensors);
  std::printf("%s tensors, %s parameters\n", grouped(int64_t(tensors.size())).c_str(), grouped(n).c_str());
  std::printf("weights: %.3f GB in bf16, %.3f GB in f32; training in f32 with AdamW: %.3f GB\n",
              double(n) * 2e-9, double(n) * 4e-9, double(n) * 16e-9);
}

// What a stream holds per block kind at a frame size, in bf16 but for the f32 recurrent state (dit.md 6.1).
void print_stream_memory(const DitConfig& c, int64_t tokens) {
  const double head_dim = double(c.width / c.heads), softmax = double(c.softmax_blocks.size());
  const double gdn = (double(c.depth) - softmax) * double(c.heads) * (head_dim * head_dim + head_dim) * 4;
  const double tail = double(c.depth) * double(c.width * tokens) * 2;
  const double chunks = double(c.cached_chunks < 0 ? 0 : c.cached_chunks);
  const double window = softmax * chunks * double(c.chunk_frames * tokens * c.width) * 2 * 2;
  std::printf(
      "stream state at %lld tokens a frame: recurrent %.2f MB, temporal frames %.2f MB, windows %.2f MB\n",
      static_cast<long long>(tokens), gdn * 1e-6, tail * 1e-6, window * 1e-6);
}

void inspect_dit(const DitConfig& config, bool list, int64_t tokens) {
  Dit dit(config, Device::meta);
  const NamedTensors tensors = named_tensors(dit);
  std::printf("%s transformer: %lld blocks of width %lld, %lld heads of %lld, %zu of the blocks softmax\n",
              config.variant.c_str(), static_cast<long long>(config.depth),
              static_cast<long long>(config.width), static_cast<long long>(config.heads),
              static_cast<long long>(config.width / config.heads), config.softmax_blocks.size());
  if (list) print_tensors(tensors);
  print_totals(tensors);
  print_stream_memory(config, tokens);
}

}  // namespace

int run_inspect(const InspectOptions& options) {
  namespace fs = std::filesystem;
  const std::string& what = options.what;
  if (options.gemm) return run_inspect_gemm(options.json);
  check(!what.empty(), "inspect: name a model, a file or a config, or ask for --gemm");
  if (what == "sana-streaming-2b" || what == "sana-bidirectional-2b") {
    DitConfig config;
    if (what == "sana-bidirectional-2b") config.variant = "bidirectional";
    inspect_dit(config, options.tensors, 22 * 40);
  } else if (fs::is_directory(what)) {
    const std::string path = what + "/config.json";
    const EditModelConfig config = read_edit_model_config(Fields(read_json(path), path));
    std::printf("%s: predicts %s, %lldx%lld patches, %zu words\n", config.name.c_str(),
                config.prediction.c_str(), static_cast<long long>(config.patch),
                static_cast<long long>(config.patch), config.vocabulary.words().size());
    EditModel model(config, Device::meta);
    inspect_dit(config.dit, false, 32 * 18);
    const NamedTensors all = named_tensors(model);
    if (options.tensors) print_tensors(all);
    std::printf("with the instruction encoder: ");
    print_totals(all);
    EditModel::load(what);  // the weights must fit
  } else {
    const SafeTensors file(what);
    NamedTensors tensors(file.tensors().begin(), file.tensors().end());
    for (const auto& [key, value] : file.metadata())
      std::printf("%s: %s\n", key.c_str(),
                  value.size() > 200 ? (value.substr(0, 200) + "...").c_str() : value.c_str());
    print_tensors(tensors);
    print_totals(tensors);
  }
  return 0;
}

}  // namespace rivulet
