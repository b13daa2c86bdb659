// Running the few-step student over a clip as training does (training.md 3.2 and 4.1): chunk by chunk, from
// its own predictions, with the memory it wrote itself.
#pragma once

#include "train/edit_net.h"

namespace rivulet {

// How a clip is run.
struct RolloutPlan {
  std::vector<int64_t> chunks;                        // frames of each chunk
  std::vector<double> steps = {1000, 961, 893, 743};  // t of the student's steps
  double shift = 8;                                   // of the table that turns t into a level
  int64_t exit = 0;     // the step whose prediction is the result, one for all chunks of the clip
  bool graded = false;  // is that step on the tape?
};

struct ClipRun {
  Tensor x0;           // [B, C, T, h, w]
  StreamState memory;  // after the clip, detached
};

// For each chunk: from noise through the steps up to plan.exit, each next input being the prediction with
// fresh noise at the next level; steps before the exit are never on the tape. The prediction of the exit step
// is the result and what the memory gets. Gradients reach one network call per chunk, nothing else.
ClipRun roll_out(const EditNet& net, const Tensor& source, const TextContext& text, const StreamState& memory,
                 const RolloutPlan& plan, Rng& rng);

// Memory with the clean chunk x0 in it: a call told t = 0, off the tape, at the lowest level of the table
// (0.8 % of noise at shift 8).
StreamState write_memory(const EditNet& net, const Tensor& x0, const Tensor& source, const TextContext& text,
                         const StreamState& memory, double shift, Rng& rng);

struct ReverseRun {
  Tensor loss;         // on the tape when the plan is graded
  StreamState memory;  // the reverse stream's own
};

// Cycle-reverse: the same network turns its own edit back. The source, noised to the level of plan.exit, is
// predicted beside the edit (detached) under the reverse instruction, with a memory of its own that gets the
// predictions. loss = mean (v - (noise - source))^2. `memory` is not the forward stream's.
ReverseRun run_reverse(const EditNet& net, const Tensor& edit, const Tensor& source,
                       const TextContext& reverse, const StreamState& memory, const RolloutPlan& plan,
                       Rng& rng);

}  // namespace rivulet
