// ODE initialisation of the few-step student (training.md 2.2): states of the teacher's trajectories at the
// student's levels are stored; the student learns to go from any of them to the result, chunk-causally.
#pragma once

#include "train/edit_net.h"

namespace rivulet {

struct TeacherOptions {
  int64_t solver_steps = 50;
  double guidance = 6;  // of uncond + w (cond - uncond)
  double shift = 8;
  std::vector<double> steps = {1000, 961, 893, 743};  // t of the states that are kept, besides the result
};
// From noise [B, C, T, h, w] by the teacher as a whole-clip network: the states at every t of `steps` and the
// result, [B, K + 1, C, T, h, w].
Tensor teacher_trajectory(const EditNet& teacher, const Tensor& noise, const Tensor& source,
                          const TextContext& text, const TextContext& negative,
                          const TeacherOptions& options);

// The student's input: every chunk of every sample stands at a state of its own, drawn uniformly. Chunks that
// drew the result are clean: they are told t = 0 and serve as context.
struct MixedStates {
  Tensor x, clean;  // [B, C, T, h, w]
  Tensor sigma, t;  // [B, T]
  Tensor trained;   // f32 [B, T]: 0 on clean frames
};
MixedStates mix_states(const Tensor& states, const std::vector<int64_t>& chunks,
                       const std::vector<double>& steps, double shift, Rng& rng);

// Mean over the frames that are not clean of (x0 - result)^2; 0 when all are. Gradients cross the chunks.
Tensor ode_loss(const EditNet& student, const MixedStates& in, const Tensor& source, const TextContext& text,
                const std::vector<int64_t>& chunks);

// Trajectories on disk: DIR/shard_<n>.safetensors, each holding "states" and "source" of several in f16 and
// their instructions in the metadata. Shards are written whole or not at all.
struct Trajectory {
  Tensor states, source;  // f32 [1, K + 1, C, T, h, w] and [1, C, T, h, w]
  std::string instruction;
};
bool has_shard(const std::string& dir, int64_t shard);
void save_shard(const std::string& dir, int64_t shard, const Tensor& states, const Tensor& source,
                const std::vector<std::string>& instructions);

class TrajectoryStore {
 public:
  // Throws unless the folder holds the shards 0 to n - 1, n at least 1, of one shape.
  static TrajectoryStore open(const std::string& dir);
  int64_t size() const { return int64_t(instructions_.size()); }
  Trajectory get(int64_t index) const;

 private:
  struct Shard {
    Tensor states, source;
  };
  std::vector<Shard> shards_;
  std::vector<std::pair<size_t, int64_t>> place_;  // shard and row of each
  std::vector<std::string> instructions_;
};

}  // namespace rivulet
