// One safetensors file holds a whole training run at one step: the weights as "model.<name>", the
// optimizer's state as "optimizer.<m|v|master>.<name>", the average as "ema.<name>", and in the metadata
// the step, the random state, the config and what else a task counts. It is written beside its final name and
// renamed.
#pragma once

#include <optional>

#include "nn/config.h"
#include "train/ema.h"
#include "train/optimizer.h"

namespace rivulet {

struct RunState {
  int64_t step = 0;  // optimizer steps done
  Rng rng;
  Json config = Json::object();
  Json progress = Json::object();  // the task's own
};

// `others` are tensors of the task, under their own names.
void save_checkpoint(const std::string& path, const RunState& state, const NamedTensors& params,
                     const AdamW& optimizer, const Ema& ema,
                     const std::map<std::string, Tensor>& others = {});
// Reads into the parameters, the optimizer and the average. Throws, naming the file, when it is not a
// checkpoint or does not fit; what was read before the problem showed may have changed. The tensors of a task
// are the caller's to read.
RunState load_checkpoint(const std::string& path, const NamedTensors& params, AdamW& optimizer, Ema& ema);

// The file of a step in a run's folder: step_00001500.safetensors.
std::string checkpoint_path(const std::string& dir, int64_t step);
// The step in such a name; -1 for any other file.
int64_t checkpoint_step(const std::string& path);
// The file with the most steps done; nothing when there is none (or no folder).
std::optional<std::string> latest_checkpoint(const std::string& dir);
// Removes all but the `keep` newest, and what a killed process left half-written.
void prune_checkpoints(const std::string& dir, int64_t keep);

}  // namespace rivulet
