#include "train/checkpoint.h"

#include <cstdio>
#include <filesystem>
#include <limits>

namespace rivulet {
namespace {

namespace fs = std::filesystem;

constexpr char kFormat[] = "rivulet checkpoint 1", kPrefix[] = "step_", kSuffix[] = ".safetensors";

std::map<int64_t, fs::path> checkpoints_in(const std::string& dir) {
  std::map<int64_t, fs::path> found;
  std::error_code none;
  for (const fs::directory_entry& e : fs::directory_iterator(dir, none))
    if (const int64_t step = checkpoint_step(e.path().string()); step >= 0) found[step] = e.path();
  return found;
}

void add(std::map<std::string, Tensor>& tensors, const std::string& prefix, const NamedTensors& list) {
  for (const auto& [name, tensor] : list) {
    const bool fresh = tensors.emplace(prefix + name, tensor.detach()).second;
    check(fresh, "save_checkpoint: two tensors are called ", prefix, name);
  }
}

uint64_t word_of(const Json& j) { return std::stoull(j.get<std::string>()); }

RunState read_state(const SafeTensors& file) {
  const auto& meta = file.metadata();
  const auto format = meta.find("format"), run = meta.find("run");
  check(format != meta.end() && format->second == kFormat && run != meta.end(), file.path(),
        ": not a training checkpoint of this version");
  try {
    const Json j = parse_json(run->second, file.path());
    RunState state;
    state.step = j.at("step").get<int64_t>();
    state.rng = {word_of(j.at("rng").at("seed")), word_of(j.at("rng").at("offset"))};
    state.config = j.at("config");
    state.progress = j.value("progress", Json::object());
    check(state.step >= 0, file.path(), ": the step is ", state.step);
    return state;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    fail(file.path(), ": the run's state in the metadata is damaged: ", e.what());
  }
}

bool has_average(const SafeTensors& file) {
  const auto it = file.tensors().lower_bound("ema.");
  return it != file.tensors().end() && it->first.starts_with("ema.");
}

}  // namespace

void save_checkpoint(const std::string& path, const RunState& state, const NamedTensors& params,
                     const AdamW& optimizer, const Ema& ema, const std::map<std::string, Tensor>& others) {
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, tensor] : others) add(tensors, "", {{name, tensor}});
  add(tensors, "model.", params);
  add(tensors, "optimizer.", optimizer.state());
  add(tensors, "ema.", ema.average());
  // 64-bit words travel as text: JSON readers may round them to doubles.
  const Json run = {
      {"step", state.step},
      {"rng", {{"seed", std::to_string(state.rng.seed)}, {"offset", std::to_string(state.rng.offset)}}},
      {"config", state.config},
      {"progress", state.progress}};
  save_safetensors(path, tensors, {{"format", kFormat}, {"run", run.dump()}});
}

RunState load_checkpoint(const std::string& path, const NamedTensors& params, AdamW& optimizer, Ema& ema) {
  const SafeTensors file(path);
  RunState state = read_state(file);
  NamedTensors plain;  // without the grad flag: values are written outside the tape
  for (const auto& [name, param] : params) plain.emplace_back(name, param.detach());
  load_tensors(plain, file, "model.");
  load_tensors(optimizer.state(), file, "optimizer.");
  optimizer.set_steps_done(state.step);
  if (has_average(file)) {
    ema.create();
    load_tensors(ema.average(), file, "ema.");
  }
  return state;
}

std::string checkpoint_path(const std::string& dir, int64_t step) {
  char name[64];
  std::snprintf(name, sizeof name, "%s%08lld%s", kPrefix, static_cast<long long>(step), kSuffix);
  return (fs::path(dir) / name).string();
}

int64_t checkpoint_step(const std::string& path) {
  const std::string file = fs::path(path).filename().string();
  const size_t a = sizeof kPrefix - 1, b = sizeof kSuffix - 1;
  if (file.size() <= a + b || file.size() > a + b + 18) return -1;
  if (!file.starts_with(kPrefix) || !file.ends_with(kSuffix)) return -1;
  const std::string digits = file.substr(a, file.size() - a - b);
  if (digits.find_first_not_of("0123456789") != std::string::npos) return -1;
  return std::stoll(digits);
}

std::optional<std::string> latest_checkpoint(const std::string& dir) {
  const auto found = checkpoints_in(dir);
  if (found.empty()) return std::nullopt;
  return found.rbegin()->second.string();
}

void prune_checkpoints(const std::string& dir, int64_t keep) {
  std::error_code ignored;  // a file that cannot be removed costs space, not the run
  auto found = checkpoints_in(dir);
  for (; static_cast<int64_t>(found.size()) > keep; found.erase(found.begin()))
    fs::remove(found.begin()->second, ignored);
  std::vector<fs::path> torn;
  for (const fs::directory_entry& e : fs::directory_iterator(dir, ignored)) {
    const std::string file = e.path().filename().string();
    const size_t cut = file.find(std::string(kSuffix) + ".tmp");
    if (cut != std::string::npos && checkpoint_step(file.substr(0, cut) + kSuffix) >= 0)
      torn.push_back(e.path());
  }
  for (const fs::path& p : torn) fs::remove(p, ignored);
}

}  // namespace rivulet
