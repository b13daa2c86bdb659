// AdamW with decoupled weight decay and parameter groups, and clipping by the global norm.
#pragma once

#include <optional>

#include "nn/module.h"

namespace rivulet {

// The parameters whose full name matches `pattern` (shell style: * ? [..]). The first match counts.
struct ParamGroup {
  std::string pattern;
  double lr_scale = 1;  // 0 leaves the group as it is; its gradients still count in the norm
  std::optional<double> weight_decay = {};  // in place of the optimizer's own
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  std::vector<ParamGroup> groups = {};
};

// L2 norm of all gradients together, summed in f64 in list order. Parameters without a gradient count 0.
double grad_norm(const NamedTensors& params);
// The factor that brings a norm down to `max_norm`; 1 when it is below already or max_norm is 0 (off).
double clip_scale(double norm, double max_norm);
void zero_grad(const NamedTensors& params);

class AdamW {
 public:
  // params: dense f32, bf16 or f16 leaves. Half parameters get an f32 master copy that is updated in their
  // place and rounded back after each step. Throws when a group's pattern matches nothing.
  AdamW(NamedTensors params, AdamWOptions options);

  // One step from the parameters' grad(), each gradient multiplied by grad_scale first. A parameter
  // without a gradient is left as it is, decay included.
  void step(double lr, double grad_scale = 1);
  int64_t steps_done() const { return count_; }

  // Half parameters from their master copies again, after somebody changed those.
  void round_masters() const;
  // What is really trained: the f32 master copies of half parameters, the parameters themselves otherwise.
  NamedTensors masters() const;
  // The moments "m.<name>" and "v.<name>", and "master.<name>" for half parameters: all f32, sharing
  // the optimizer's own data, so that a checkpoint writes them and reads into them.
  NamedTensors state() const;
  void set_steps_done(int64_t count) { count_ = count; }

 private:
  struct Slot {
    std::string name;
    Tensor param, master, m, v;  // master is the parameter itself when that is f32
    double lr_scale, weight_decay;
  };
  std::vector<Slot> slots_;
  AdamWOptions options_;
  int64_t count_ = 0;
};

}  // namespace rivulet
