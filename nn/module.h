// A layer is a plain struct: tensors and layers are members, visit() lists them by their released names.
//
//   struct Linear {
//     Tensor weight, bias;
//     template <class F> void visit(F&& f) { f("weight", weight); f("bias", bias); }
//     Tensor operator()(const Tensor& x) const;
//   };
//
// A member may be a Tensor, another layer, or a std::vector of layers ("blocks" gives "blocks.0.", ...).
// Undefined tensors (an absent bias) are skipped everywhere.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tensor/autograd.h"
#include "tensor/random.h"
#include "tensor/safetensors.h"

namespace rivulet {

// Name and handle of every parameter, in declaration order. The handles share data and gradient with the
// module's own, so an optimizer works on this list alone.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

namespace detail {
template <class F>
struct Visitor {
  std::string prefix;
  F& f;
  void operator()(const std::string& name, Tensor& t) {
    if (t.defined()) f(prefix + name, t);
  }
  template <class M>
  void operator()(const std::string& name, std::vector<M>& list) {
    for (size_t i = 0; i < list.size(); ++i) (*this)(name + "." + std::to_string(i), list[i]);
  }
  template <class M>
  void operator()(const std::string& name, M& module) {
    Visitor<F> inner{prefix + name + ".", f};
    module.visit(inner);
  }
};
}  // namespace detail

// f(full name, Tensor&) for every tensor of the module.
template <class M, class F>
void for_each_tensor(M& module, F&& f) {
  detail::Visitor<F> visitor{"", f};
  module.visit(visitor);
}

template <class M>
NamedTensors named_tensors(M& module) {
  NamedTensors list;
  for_each_tensor(module, [&](const std::string& name, Tensor& t) {
    t.set_requires_grad(t.requires_grad());  // the copy below must share the place a gradient goes to
    list.emplace_back(name, t);
  });
  return list;
}

// Copies file tensors into the module's by name (with `prefix` in front of each in the file). Throws one
// Error that lists every missing tensor and every wrong shape at once. Names in the file that the module
// does not have are ignored.
void load_tensors(const NamedTensors& into, const SafeTensors& file, const std::string& prefix = "");

// Replaces every tensor of the module by one of that dtype, off the tape; gradients are asked for anew.
template <class M>
void convert(M& module, DType dtype) {
  for_each_tensor(module, [dtype](const std::string&, Tensor& t) { t = t.detach().to(dtype); });
}

int64_t count_elements(const NamedTensors& tensors);
void set_requires_grad(const NamedTensors& tensors, bool on);

}  // namespace rivulet
