// What `rivulet train` reads: one JSON file, every field checked, unknown fields refused.
#pragma once

#include "nn/config.h"
#include "train/flow_matching.h"
#include "train/optimizer.h"
#include "train/schedule.h"

namespace rivulet {

// Only "steps", "model" and "output.dir" must be given. In JSON:
//   {"steps": 3000, "batch": 8, "accumulate": 1, "seed": 1, "compute": "f32" or "bf16",
//    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0, "clip_norm": 1,
//                  "groups": [{"pattern": "*.bias", "lr_scale": 1, "weight_decay": 0}]},
//    "schedule": {"kind": "constant" or "cosine", "warmup": 100, "final_fraction": 0},
//    "ema": {"decay": 0.999, "start_step": 200},
//    "flow": {"shift": 3, "logit_mean": 0, "logit_std": 1, "text_dropout": 0.1, "seam": 0},
//    "clip": {"width": 256, "height": 144, "frames": 11},
//    "data": {...}, "model": {...} or "file.json",
//    "output": {"dir": "runs/brook", "checkpoint_every": 500, "keep": 3, "sample_every": 500, "log_every":
//    1}}
//   "task": "edit" (the default), "vae" and "vae_distill" with their "loss" (train/vae_training.h), "flow"
//   and "ode" (train/clip_stages.h) and "self_forcing" (train/self_forcing.h) with their "stage".
// Adam's first beta, weight decay, clipping and average start from 0, 0.01, 10 and 0.99 after step 200 for
// the task "self_forcing" (training.md 3.6), from 0.9, 0 and none for the others.
struct TrainConfig {
  std::string task = "edit";
  int64_t steps = 0;       // optimizer steps of the whole run
  int64_t batch = 1;       // samples of one micro-batch
  int64_t accumulate = 1;  // micro-batches whose gradients are averaged into one step
  int64_t seed = 0;
  DType compute = DType::f32;  // of activations; weights, their averages and the optimizer stay f32

  AdamWOptions optimizer;
  double clip_norm = 0;  // 0: gradients are not clipped
  Schedule schedule;     // its lr is optimizer.lr, its steps are steps
  double ema_decay = 0;  // 0: no average
  int64_t ema_start = 0;
  FlowOptions flow;
  int64_t width = 256, height = 144, frames = 11;  // of a training clip

  // Objects that the data source, the model and the task validate themselves.
  Json data = Json::object(), model = Json::object(), loss = Json::object(), stage = Json::object();

  std::string dir;               // checkpoints, metrics.jsonl and samples go here
  int64_t checkpoint_every = 0;  // 0: only at the end and on interrupt
  int64_t keep = 3;              // newest checkpoints that are kept
  int64_t sample_every = 0;      // 0: never
  int64_t log_every = 1;
};

// `source` names the text in errors. A model given as a path is read relative to `folder` and stands
// inline in the result.
TrainConfig train_config(const Json& json, const std::string& source, const std::string& folder = "");
TrainConfig read_train_config(const std::string& path);
// The full config, defaults included; train_config reads it back to an equal one.
Json to_json(const TrainConfig& config);

}  // namespace rivulet
