// The one tensor type: a cheap handle to (shape, strides, dtype, storage) and, when it was computed from
// something that needs a gradient, to its place on the tape. Copying the handle shares the data.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/shape.h"
#include "tensor/storage.h"

namespace rivulet {

class Tensor;
using Tensors = std::vector<Tensor>;
struct AutogradMeta;  // tensor/autograd.h

class Tensor {
 public:
  Tensor() = default;  // undefined: no shape, no data
  // A dense tensor with unspecified contents.
  explicit Tensor(const Shape& shape, DType dtype = DType::f32, Device device = Device::cpu);
  Tensor(std::shared_ptr<Storage> storage, int64_t offset_elements, const Shape& shape, const Shape& strides,
         DType dtype);
  // A dense CPU tensor holding `values` (converted to dtype).
  static Tensor of(const std::vector<double>& values, const Shape& shape, DType dtype = DType::f32);

  bool defined() const { return storage_ != nullptr || device_ == Device::meta; }
  explicit operator bool() const { return defined(); }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }  // in elements
  int dims() const { return shape_.size(); }
  int64_t dim(int i) const { return shape_[wrap_dim(i, dims(), "dim")]; }  // -1 is the last
  int64_t numel() const { return shape_.numel(); }
  int64_t bytes() const { return numel() * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool is_contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  // First element. data<T>() throws when T is not the dtype.
  void* raw() const {
    check(storage_ != nullptr, "tensor: ", defined() ? "a meta" : "an undefined", " tensor has no data");
    return static_cast<char*>(storage_->data()) + offset_ * size_of(dtype_);
  }
  template <class T>
  T* data() const {
    check(dtype_of<T>::value == dtype_, "tensor: asked for ", dtype_of<T>::value, " data of a ", dtype_,
          " tensor");
    return static_cast<T*>(raw());
  }
  // The value of a one-element tensor.
  double item() const;
  std::vector<double> to_vector() const;

  // --- Views: share the storage and are differentiable. --------------------------------------------
  Tensor permute(const Shape& order) const;
  Tensor transpose(int a, int b) const;
  // Elements begin, begin + step, ... below end along dim; negative begin and end count from the end.
  Tensor slice(int dim, int64_t begin, int64_t end, int64_t step = 1) const;
  Tensor select(int dim, int64_t index) const;  // slice of one, dim removed
  Tensor unsqueeze(int dim) const;
  Tensor squeeze(int dim) const;
  Tensor expand(const Shape& shape) const;  // broadcast without copying: stride 0
  // One entry may be -1. A view when the strides allow it, otherwise of a dense copy.
  Tensor reshape(Shape shape) const;
  Tensor flatten(int first, int last) const;
  // --- Copies: differentiable. ----------------------------------------------------------------------
  Tensor contiguous() const;  // itself when already dense
  Tensor clone() const;
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;

  // --- In place, outside the tape: throws on a tensor that is part of a graph being recorded. -------
  const Tensor& copy_from(const Tensor& source) const;  // same shape after broadcasting; converts dtype
  const Tensor& fill(double value) const;
  const Tensor& add_in_place(const Tensor& source, double scale = 1) const;  // this += scale * source

  // --- Autograd. --------------------------------------------------------------------------------------
  bool requires_grad() const;
  Tensor& set_requires_grad(bool on = true);
  Tensor detach() const;  // same data, off the tape
  // The gradient gathered on a leaf by backward(); undefined before.
  Tensor grad() const;
  void set_grad(Tensor grad) const;
  const std::shared_ptr<AutogradMeta>& autograd() const { return autograd_; }
  void set_autograd(std::shared_ptr<AutogradMeta> meta) { autograd_ = std::move(meta); }

 private:
  friend Tensor make_view(const Tensor&, const Shape&, const Shape&, int64_t);
  std::shared_ptr<Storage> storage_;
  std::shared_ptr<AutogradMeta> autograd_;
  Shape shape_, strides_;
  int64_t offset_ = 0;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
};

Tensor zeros(const Shape& shape, DType dtype = DType::f32, Device device = Device::cpu);
Tensor ones(const Shape& shape, DType dtype = DType::f32, Device device = Device::cpu);
Tensor full(const Shape& shape, double value, DType dtype = DType::f32, Device device = Device::cpu);
Tensor arange(int64_t n, DType dtype = DType::i64, Device device = Device::cpu);
Tensor empty_like(const Tensor& x);  // dense, same shape, dtype and device
Tensor zeros_like(const Tensor& x);

// Adds up the broadcast dims of `g` so that it has `shape`: the gradient of broadcasting.
Tensor sum_to(const Tensor& g, const Shape& shape);

}  // namespace rivulet
