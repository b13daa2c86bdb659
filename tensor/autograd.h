// Eager reverse-mode autograd. An op computes its result, then calls record() with the rule that turns
// the gradient of the result into the gradients of the inputs:
//
//   Tensor y = ...;
//   return record("tanh", y, {x}, [y](const Tensor& dy) -> Tensors { return {dy * (1 - y * y)}; });
//
// Rules run without recording. An undefined tensor in their result means "no gradient".
#pragma once

#include <functional>

#include "tensor/tensor.h"

namespace rivulet {

using BackwardOne = std::function<Tensors(const Tensor& dy)>;
// For ops with several outputs: dy[i] is undefined when output i got no gradient.
using BackwardMany = std::function<Tensors(const Tensors& dy)>;

struct Node;
struct AutogradMeta {
  bool requires_grad = false;
  Tensor grad;                 // leaves only
  std::shared_ptr<Node> node;  // null for leaves
  int output = 0;              // which output of node this is
};

// Puts y on the tape when recording is on and an input needs a gradient; returns y. Always runs the
// anomaly check when that is on. `op` must be a string that outlives the tape (a literal).
Tensor record(const char* op, Tensor y, const Tensors& inputs, BackwardOne backward);
Tensors record(const char* op, Tensors ys, const Tensors& inputs, BackwardMany backward);
// True when record() would put a result of these inputs on the tape; lets an op skip saving.
bool will_record(const Tensors& inputs);

// Adds d(root)/d(leaf) to every leaf's grad(). root has one element unless a seed is given.
// The tape behind root is used up.
void backward(const Tensor& root, const Tensor& seed = {});
// Several roots at once, each with its seed (an undefined seed means ones for a one-element root).
void backward(const Tensors& roots, const Tensors& seeds);

// Recording is on by default; this turns it off on this thread while in scope.
class NoGrad {
 public:
  explicit NoGrad(bool off = true);
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool previous_;
};
bool grad_enabled();

// While in scope on this thread, the first op whose output (or whose backward's output) holds a NaN
// throws an Error that names the op.
class AnomalyMode {
 public:
  AnomalyMode();
  ~AnomalyMode();
  AnomalyMode(const AnomalyMode&) = delete;
  AnomalyMode& operator=(const AnomalyMode&) = delete;

 private:
  bool previous_;
};

// Activation checkpointing: runs f(inputs) without a tape and runs it again during backward.
// f must give the same result both times. Leaves that f captures (parameters) get their gradients too.
Tensors checkpoint(const std::function<Tensors(const Tensors&)>& f, const Tensors& inputs);

}  // namespace rivulet
