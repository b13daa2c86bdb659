#include "tensor/autograd.h"

#include <atomic>
#include <map>
#include <utility>

#include "tensor/kernels.h"

namespace rivulet {

struct Node {
  const char* op;
  uint64_t order;  // creation order: every node comes after its inputs
  Tensors inputs;
  BackwardMany rule;  // empty once used
  struct Output {
    Shape shape;
    DType dtype;
    Device device;
  };
  std::vector<Output> outputs;
  ~Node();
};

namespace {

thread_local bool grad_on = true;
thread_local bool anomaly_on = false;
std::atomic<uint64_t> next_order{0};  // only its growth matters

// The opposite of NoGrad, for re-running a checkpointed function inside a backward rule.
struct WithGrad {
  bool previous = std::exchange(grad_on, true);
  ~WithGrad() { grad_on = previous; }
};

bool has_nan(const Tensor& t) {
  if (!t.defined() || t.device() == Device::meta || !is_floating(t.dtype())) return false;
  return ON_DEVICE(t, has_nan(t));
}

void check_nan(const Tensors& ts, const char* what, const char* op) {
  if (!anomaly_on) return;
  for (const Tensor& t : ts)
    check(!has_nan(t), what, op, " made the first NaN, in a tensor of shape ",
          t.defined() ? t.shape() : Shape{});
}

// The only handle on dense memory of its own, so that what it is assigned to may write there.
bool is_sole_owner(const Tensor& g) {
  return g.storage() && g.storage().use_count() == 1 && g.is_contiguous() &&
         g.storage()->bytes() == g.bytes();
}

void accumulate(Tensor& into, const Tensor& g) {
  if (!into.defined()) {
    into = g;
    return;
  }
  // The first gradient may be shared with another node's input or the caller.
  if (!is_sole_owner(into)) into = into.clone();
  into.add_in_place(g);
}

void accumulate_leaf(AutogradMeta& leaf, const Tensor& g, bool sole_owner) {
  if (!leaf.grad.defined())
    leaf.grad = sole_owner ? g : g.clone();
  else
    leaf.grad.add_in_place(g);
}

}  // namespace

// A long chain of nodes must not unwind by recursion: what a node holds goes on a list that the outermost
// destructor of this thread empties one by one.
Node::~Node() {
  struct Held {
    Tensors inputs;
    BackwardMany rule;
  };
  thread_local std::vector<Held>* list = nullptr;
  if (list) {
    list->push_back({std::move(inputs), std::move(rule)});
    return;
  }
  std::vector<Held> doomed;
  list = &doomed;
  doomed.push_back({std::move(inputs), std::move(rule)});
  while (!doomed.empty()) {
    const Held last = std::move(doomed.back());
    doomed.pop_back();
  }
  list = nullptr;
}

bool grad_enabled() { return grad_on; }
NoGrad::NoGrad(bool off) : previous_(grad_on) {
  if (off) grad_on = false;
}
NoGrad::~NoGrad() { grad_on = previous_; }
AnomalyMode::AnomalyMode() : previous_(anomaly_on) { anomaly_on = true; }
AnomalyMode::~AnomalyMode() { anomaly_on = previous_; }

bool Tensor::requires_grad() const { return autograd_ && autograd_->requires_grad; }

Tensor& Tensor::set_requires_grad(bool on) {
  check(!on || is_floating(dtype_), "set_requires_grad: a ", dtype_, " tensor has no gradient");
  if (!autograd_) autograd_ = std::make_shared<AutogradMeta>();
  check(!autograd_->node, "set_requires_grad: only on leaves, this is the result of '",
        autograd_->node ? autograd_->node->op : "", "'");
  autograd_->requires_grad = on;
  return *this;
}

Tensor Tensor::detach() const {
  Tensor t = *this;
  t.autograd_ = nullptr;
  return t;
}

Tensor Tensor::grad() const { return autograd_ ? autograd_->grad : Tensor(); }

void Tensor::set_grad(Tensor grad) const {
  check(autograd_ && !autograd_->node, "set_grad: only on leaves that need a gradient");
  autograd_->grad = std::move(grad);
}

bool will_record(const Tensors& inputs) {
  if (!grad_on) return false;
  for (const Tensor& t : inputs)
    if (t.requires_grad()) return true;
  return false;
}

Tensors record(const char* op, Tensors ys, const Tensors& inputs, BackwardMany backward) {
  check_nan(ys, "op ", op);
  if (!will_record(inputs)) return ys;
  const auto node = std::make_shared<Node>();
  node->op = op;
  node->order = next_order++;
  node->inputs = inputs;
  node->rule = std::move(backward);
  for (size_t i = 0; i < ys.size(); ++i) {
    Tensor& y = ys[i];
    node->outputs.push_back({y.shape(), y.dtype(), y.device()});
    if (!is_floating(y.dtype())) continue;
    const auto meta = std::make_shared<AutogradMeta>();
    meta->requires_grad = true;
    meta->node = node;
    meta->output = int(i);
    y.set_autograd(meta);
  }
  return ys;
}

Tensor record(const char* op, Tensor y, const Tensors& inputs, BackwardOne backward) {
  if (!will_record(inputs)) {
    check_nan({y}, "op ", op);
    return y;
  }
  return record(op, Tensors{y}, inputs,
                [rule = std::move(backward)](const Tensors& dy) { return rule(dy[0]); })[0];
}

namespace {

// The nodes that still wait for gradients, latest first: a node runs when all its users have run.
class Sweep {
 public:
  void add(const Tensor& t, const Tensor& g) {
    const auto& meta = t.autograd();
    if (!meta || !meta->requires_grad || !g.defined()) return;
    check(g.shape() == t.shape(), "backward: gradient of shape ", g.shape(), " for a tensor of shape ",
          t.shape());
    if (!meta->node) return accumulate_leaf(*meta, g.to(t.dtype()), is_sole_owner(g));
    auto& pending = waiting_[meta->node->order];
    if (!pending.node) {
      pending.node = meta->node;
      pending.grads.resize(meta->node->outputs.size());
    }
    accumulate(pending.grads[size_t(meta->output)], g);
  }

  void run() {
    while (!waiting_.empty()) {
      const auto last = std::prev(waiting_.end());
      const auto [node, grads] = std::move(last->second);
      waiting_.erase(last);
      check(bool(node->rule), "backward: the tape behind '", node->op, "' was already used");
      const BackwardMany rule = std::move(node->rule);
      node->rule = nullptr;
      const Tensors inputs = std::move(node->inputs);
      node->inputs.clear();
      const Tensors dx = apply(rule, grads, node->op);
      check_nan(dx, "the backward of op ", node->op);
      check(dx.size() == inputs.size(), "backward of '", node->op, "': ", dx.size(), " gradients for ",
            inputs.size(), " inputs");
      for (size_t i = 0; i < dx.size(); ++i) add(inputs[i], dx[i]);
    }
  }

 private:
  struct Pending {
    std::shared_ptr<Node> node;
    Tensors grads;
  };
  // A rule is made of ops; what goes wrong in one is told with the op whose backward it is.
  static Tensors apply(const BackwardMany& rule, const Tensors& grads, const char* op) {
    try {
      return rule(grads);
    } catch (const Error& e) {
      fail("the backward of op ", op, ": ", e.what());
    }
  }

  std::map<uint64_t, Pending> waiting_;
};

}  // namespace

void backward(const Tensors& roots, const Tensors& seeds) {
  NoGrad off;
  Sweep sweep;
  for (size_t i = 0; i < roots.size(); ++i) {
    Tensor seed = i < seeds.size() ? seeds[i] : Tensor();
    if (!seed.defined()) {
      check(roots[i].numel() == 1, "backward: a root of shape ", roots[i].shape(), " needs a seed");
      seed = ones(roots[i].shape(), roots[i].dtype(), roots[i].device());
    }
    sweep.add(roots[i], seed);
  }
  sweep.run();
}

void backward(const Tensor& root, const Tensor& seed) {
  check(root.requires_grad(), "backward: nothing behind this tensor needs a gradient");
  backward(Tensors{root}, Tensors{seed});
}

Tensors checkpoint(const std::function<Tensors(const Tensors&)>& f, const Tensors& inputs) {
  if (!grad_enabled()) return f(inputs);
  Tensors ys;
  {
    NoGrad off;
    ys = f(inputs);
  }
  for (Tensor& y : ys) y = y.detach();
  // f may reach leaves that are not among the inputs, so the node is recorded even if no input needs a
  // gradient: a dummy leaf stands in for them.
  Tensors with_anchor = inputs;
  with_anchor.push_back(zeros(Shape{1}).set_requires_grad());
  return record("checkpoint", ys, with_anchor, [f, inputs](const Tensors& dy) {
    Tensors again;
    for (const Tensor& x : inputs) {
      Tensor leaf = x.detach();
      if (x.requires_grad()) leaf.set_requires_grad();
      again.push_back(leaf);
    }
    Tensors roots, seeds;
    {
      const WithGrad on;
      const Tensors ys = f(again);
      for (size_t i = 0; i < ys.size(); ++i)
        if (dy[i].defined() && ys[i].requires_grad()) {
          roots.push_back(ys[i]);
          seeds.push_back(dy[i]);
        }
    }
    backward(roots, seeds);
    Tensors dx;
    for (const Tensor& leaf : again) dx.push_back(leaf.grad());
    dx.emplace_back();
    return dx;
  });
}

}  // namespace rivulet
