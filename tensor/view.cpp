// Views and converting copies, with their gradients.
#include "tensor/autograd.h"

namespace rivulet {

Tensor make_view(const Tensor& x, const Shape& shape, const Shape& strides, int64_t offset) {
  Tensor y = x;
  y.autograd_ = nullptr;
  y.shape_ = shape;
  y.strides_ = strides;
  y.offset_ += offset;
  return y;
}

namespace {

// Strides of `shape` over the same elements, or nothing when a copy is needed.
bool reshaped_strides(const Tensor& x, const Shape& shape, Shape& out) {
  out = contiguous_strides(shape);
  if (x.is_contiguous()) return true;
  int i = 0, j = 0;  // groups of dims of x and of shape with equal products
  while (i < x.dims() || j < shape.size()) {
    int64_t a = i < x.dims() ? x.shape()[i] : 1, b = j < shape.size() ? shape[j] : 1;
    int i_end = std::min(i + 1, x.dims()), j_end = std::min(j + 1, shape.size());
    while (a != b) {
      if (a < b && i_end < x.dims())
        a *= x.shape()[i_end++];
      else if (b < a && j_end < shape.size())
        b *= shape[j_end++];
      else
        return false;
    }
    for (int d = i; d + 1 < i_end; ++d)
      if (x.strides()[d] != x.strides()[d + 1] * x.shape()[d + 1]) return false;
    int64_t step = i_end > i ? x.strides()[i_end - 1] : 1;
    for (int d = j_end - 1; d >= j; --d) {
      out[d] = step;
      step *= shape[d];
    }
    i = i_end;
    j = j_end;
  }
  return true;
}

}  // namespace

Tensor Tensor::permute(const Shape& order) const {
  check(order.size() == dims(), "permute: order ", order, " for shape ", shape_);
  Shape shape = shape_, strides = strides_, back = order;
  unsigned seen = 0;
  for (int i = 0; i < dims(); ++i) {
    const int from = wrap_dim(int(order[i]), dims(), "permute");
    check(!(seen >> from & 1u), "permute: order ", order, " repeats a dim");
    seen |= 1u << from;
    shape[i] = shape_[from];
    strides[i] = strides_[from];
    back[from] = i;
  }
  return record("permute", make_view(*this, shape, strides, 0), {*this},
                [back](const Tensor& dy) -> Tensors { return {dy.permute(back)}; });
}

Tensor Tensor::transpose(int a, int b) const {
  Shape order = shape_;
  for (int i = 0; i < dims(); ++i) order[i] = i;
  std::swap(order[wrap_dim(a, dims(), "transpose")], order[wrap_dim(b, dims(), "transpose")]);
  return permute(order);
}

Tensor Tensor::slice(int dim, int64_t begin, int64_t end, int64_t step) const {
  dim = wrap_dim(dim, dims(), "slice");
  const int64_t n = shape_[dim];
  if (begin < 0) begin += n;
  if (end < 0) end += n;
  check(step > 0 && begin >= 0 && begin <= end && end <= n, "slice: [", begin, ", ", end, ") step ", step,
        " of dim ", dim, " of shape ", shape_);
  Shape shape = shape_, strides = strides_;
  shape[dim] = (end - begin + step - 1) / step;
  strides[dim] *= step;
  const Shape full = shape_;
  return record("slice", make_view(*this, shape, strides, begin * strides_[dim]), {*this},
                [=](const Tensor& dy) -> Tensors {
                  Tensor dx = zeros(full, dy.dtype(), dy.device());
                  dx.slice(dim, begin, end, step).copy_from(dy);
                  return {dx};
                });
}

Tensor Tensor::select(int dim, int64_t index) const {
  dim = wrap_dim(dim, dims(), "select");
  if (index < 0) index += shape_[dim];
  return slice(dim, index, index + 1).squeeze(dim);
}

Tensor Tensor::unsqueeze(int dim) const {
  dim = wrap_dim(dim, dims() + 1, "unsqueeze");
  Shape shape, strides;
  for (int i = 0; i <= dims(); ++i) {
    if (i == dim) {
      shape.push_back(1);
      strides.push_back(i < dims() ? strides_[i] * shape_[i] : 1);
    }
    if (i < dims()) {
      shape.push_back(shape_[i]);
      strides.push_back(strides_[i]);
    }
  }
  return record("unsqueeze", make_view(*this, shape, strides, 0), {*this},
                [dim](const Tensor& dy) -> Tensors { return {dy.squeeze(dim)}; });
}

Tensor Tensor::squeeze(int dim) const {
  dim = wrap_dim(dim, dims(), "squeeze");
  check(shape_[dim] == 1, "squeeze: dim ", dim, " of shape ", shape_, " is not 1");
  Shape shape, strides;
  for (int i = 0; i < dims(); ++i) {
    if (i == dim) continue;
    shape.push_back(shape_[i]);
    strides.push_back(strides_[i]);
  }
  return record("squeeze", make_view(*this, shape, strides, 0), {*this},
                [dim](const Tensor& dy) -> Tensors { return {dy.unsqueeze(dim)}; });
}

Tensor Tensor::expand(const Shape& shape) const {
  if (shape == shape_) return *this;
  check(broadcast_shapes(shape_, shape, "expand") == shape, "expand: shape ", shape_, " to ", shape);
  Shape strides = shape;
  const int lead = shape.size() - dims();
  for (int i = 0; i < shape.size(); ++i)
    strides[i] = i < lead || shape_[i - lead] == 1 ? 0 : strides_[i - lead];
  const Shape from = shape_;
  return record("expand", make_view(*this, shape, strides, 0), {*this},
                [from](const Tensor& dy) -> Tensors { return {sum_to(dy, from)}; });
}

Tensor Tensor::reshape(Shape shape) const {
  const Shape asked = shape;
  int64_t known = 1;
  int unknown = -1;
  for (int i = 0; i < shape.size(); ++i) {
    if (shape[i] == -1 && unknown < 0) {
      unknown = i;
    } else {
      check(shape[i] >= 0, "reshape: shape ", shape_, " to ", asked);
      known *= shape[i];
    }
  }
  if (unknown >= 0) shape[unknown] = known == 0 ? 0 : numel() / known;
  check(shape.numel() == numel(), "reshape: shape ", shape_, " to ", asked);
  if (shape == shape_) return *this;
  Shape strides;
  if (!reshaped_strides(*this, shape, strides)) return contiguous().reshape(shape);
  const Shape from = shape_;
  return record("reshape", make_view(*this, shape, strides, 0), {*this},
                [from](const Tensor& dy) -> Tensors { return {dy.reshape(from)}; });
}

Tensor Tensor::flatten(int first, int last) const {
  first = wrap_dim(first, dims(), "flatten");
  last = wrap_dim(last, dims(), "flatten");
  Shape shape;
  for (int i = 0; i < dims(); ++i) {
    if (i > first && i <= last)
      shape[shape.size() - 1] *= shape_[i];
    else
      shape.push_back(shape_[i]);
  }
  return reshape(shape);
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor y = empty_like(*this);
  if (device_ != Device::meta) y.copy_from(*this);
  return record("clone", y, {*this}, [](const Tensor& dy) -> Tensors { return {dy}; });
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor y(shape_, dtype, device_);
  if (device_ != Device::meta) y.copy_from(*this);
  if (!is_floating(dtype) || !is_floating(dtype_)) return y;
  const DType from = dtype_;
  return record("to", y, {*this}, [from](const Tensor& dy) -> Tensors { return {dy.to(from)}; });
}

Tensor Tensor::to(Device device) const {
  if (device == device_) return *this;
  check(device_ != Device::meta, "to: a meta tensor of shape ", shape_, " has no data to move to ", device);
  Tensor y(shape_, dtype_, device);
  if (device != Device::meta) y.copy_from(*this);
  const Device from = device_;
  return record("to", y, {*this}, [from](const Tensor& dy) -> Tensors { return {dy.to(from)}; });
}

}  // namespace rivulet
