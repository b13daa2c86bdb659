// Self-forcing (training.md 3 and 4): the student rolls out a stream of clips from its own predictions, each
// clip is judged by the scores, and the same network also turns its edits back. One optimizer step takes one
// clip for the student, when it is its turn, and always one for the fake score.
#pragma once

#include "train/clip_stages.h"
#include "train/dmd.h"
#include "train/rollout.h"

namespace rivulet {

// "stage": {"student": DIR, "real": DIR, "fake": DIR, "student_steps": [1000, 961, 893, 743], "window": 11,
// "fresh": 9,
//   "guidance": 3, "ratio": 4,
//   "critic": {"lr": 2e-6, "betas": [0, 0.999], "eps": 1e-8, "weight_decay": 0.01, "clip_norm": 10},
//   "reverse": {"kind": "none", "weight": 0.5}, "recompute": true}
// Kinds of reverse:
//   none      no reverse task, as in a first, short stage
//   paper     source from the student's own edit under the reverse instruction
//   identity  source from itself under identity_instruction: as much real footage, but nothing to undo
//   wrong     as paper, under the reverse instruction of another stream of the batch
struct SelfForcingOptions {
  ComputeOptions compute;
  std::string student, real, fake;  // folders to start from
  std::vector<double> steps = {1000, 961, 893, 743};
  ClipRules rules;
  ScoreOptions score;
  int64_t ratio = 4;  // steps of the fake score for each of the student
  double critic_lr = 2e-6, critic_clip_norm = 10;
  AdamWOptions critic = {.beta1 = 0, .beta2 = 0.999, .weight_decay = 0.01};
  std::string reverse = "none", identity_instruction = "keep everything as it is";
  double reverse_weight = 0.5;

  bool student_turn(int64_t step) const { return step % ratio == 0; }
};
SelfForcingOptions read_self_forcing_options(Fields stage, DType compute);

// A network with the text encoder that is its own.
struct Role {
  EditNet net;
  std::function<TextContext(const std::vector<std::string>&)> encode;
};
// The model must outlive what is returned.
Role role_of(const EditModel& model);

// Steps at which a clip ends; one draw for all streams, whatever process they are in.
struct ExitSteps {
  int64_t forward, reverse;
};

class SelfForcing {
 public:
  // `streams` gives long sources; each has `groups` batches of them under way, all at the same clip. A stream
  // begins anew after its last clip, with the next examples.
  SelfForcing(Role student, Role real, Role fake, const SelfForcingOptions& options, LatentBatches& streams,
              int64_t groups = 1);

  ExitSteps draw_exits(Rng& rng) const;
  // Each takes the next clip of a group's streams. dmd + weight * reverse, for the student:
  StepLoss student_loss(int64_t group, const ExitSteps& exits, Rng& rng);
  // for the fake score; the reverse memory keeps in step, off the tape.
  StepLoss critic_loss(int64_t group, const ExitSteps& exits, Rng& rng);

  // All that the streams carry from step to step, to resume: tensors under "stream.<group>." and counters.
  Json save(std::map<std::string, Tensor>& tensors) const;
  void load(const SafeTensors& file, const Json& progress);

  // Where a group stands; for tests and for samples.
  struct Stream {
    int64_t round = -1;  // batches of streams begun before this one
    int64_t clip = 0;    // clips done of this one
    LatentBatch data;    // whole sources
    std::vector<Clip> clips;
    StreamState memory, reverse_memory;
    ClipHistory history;
  };
  const Stream& stream(int64_t group) const { return streams_[size_t(group)]; }

 private:
  struct Rolled {
    Window window;
    Tensor reverse_loss;
  };
  Rolled roll(int64_t group, const ExitSteps& exits, bool graded, Rng& rng);
  void begin(int64_t group, int64_t round);
  TextContext reverse_text(const LatentBatch& data) const;

  Role student_, real_, fake_;
  SelfForcingOptions options_;
  LatentBatches& data_;
  std::vector<Stream> streams_;
};

}  // namespace rivulet
