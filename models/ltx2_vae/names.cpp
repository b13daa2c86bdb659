#include "models/ltx2_vae/names.h"

#include <utility>
#include <vector>

namespace rivulet {
namespace {

// Ours, theirs; the first that a name begins with counts.
const std::vector<std::pair<std::string, std::string>>& prefixes() {
  static const std::vector<std::pair<std::string, std::string>> list = [] {
    std::vector<std::pair<std::string, std::string>> out;
    for (int i = 0; i < 4; ++i) {
      const std::string block = "encoder.down_blocks." + std::to_string(i) + ".";
      out.emplace_back(block + "resnets.", "encoder.down_blocks." + std::to_string(2 * i) + ".res_blocks.");
      out.emplace_back(block + "downsamplers.0.", "encoder.down_blocks." + std::to_string(2 * i + 1) + ".");
    }
    out.emplace_back("encoder.mid_block.resnets.", "encoder.down_blocks.8.res_blocks.");
    out.emplace_back("decoder.mid_block.resnets.", "decoder.up_blocks.0.res_blocks.");
    for (int i = 0; i < 3; ++i) {
      const std::string block = "decoder.up_blocks." + std::to_string(i) + ".";
      out.emplace_back(block + "upsamplers.0.", "decoder.up_blocks." + std::to_string(2 * i + 1) + ".");
      out.emplace_back(block + "resnets.", "decoder.up_blocks." + std::to_string(2 * i + 2) + ".res_blocks.");
    }
    out.emplace_back("latents_mean", "per_channel_statistics.mean-of-means");
    out.emplace_back("latents_std", "per_channel_statistics.std-of-means");
    return out;
  }();
  return list;
}

bool begins(const std::string& name, const std::string& with) {
  return name.compare(0, with.size(), with) == 0;
}

std::string our_name(const std::string& name) {
  for (const auto& [ours, theirs] : prefixes())
    if (begins(name, theirs)) return ours + name.substr(theirs.size());
  return name;
}

}  // namespace

std::string lightricks_vae_name(const std::string& name) {
  for (const auto& [ours, theirs] : prefixes())
    if (begins(name, ours)) return theirs + name.substr(ours.size());
  return name;
}

std::map<std::string, Tensor> ltx2_vae_tensors(const WeightFile& file) {
  const std::string vae = "vae.", statistics = "per_channel_statistics.";
  bool combined = false, theirs = false;
  for (const auto& [name, t] : file.tensors) combined |= begins(name, vae);
  std::map<std::string, Tensor> out;
  for (const auto& [name, t] : file.tensors) {
    if (combined && !begins(name, vae)) continue;
    const std::string own = combined ? name.substr(vae.size()) : name;
    theirs |= begins(own, statistics);
    out[own] = t;
  }
  if (!theirs) return out;
  std::map<std::string, Tensor> renamed;
  for (const auto& [name, t] : out)
    if (const std::string ours = our_name(name); !begins(ours, statistics)) renamed[ours] = t;
  return renamed;
}

}  // namespace rivulet
