#include "tensor/tensor.h"

#include <cstring>

#include "tensor/autograd.h"
#include "tensor/kernels.h"

namespace rivulet {

namespace {

// The shape itself, when its bytes and strides fit into 64 bits.
const Shape& countable(const Shape& shape, DType dtype) {
  int64_t bytes = size_of(dtype);
  for (int64_t n : shape) {
    check(n >= 0, "tensor: negative dim in shape ", shape);
    check(!__builtin_mul_overflow(bytes, std::max<int64_t>(n, 1), &bytes), "tensor: shape ", shape,
          " has more bytes than can be counted");
  }
  return shape;
}

}  // namespace

Tensor::Tensor(const Shape& shape, DType dtype, Device device)
    : shape_(countable(shape, dtype)), strides_(contiguous_strides(shape)), dtype_(dtype), device_(device) {
  if (device != Device::meta) storage_ = Storage::allocate(bytes(), device);
}

Tensor::Tensor(std::shared_ptr<Storage> storage, int64_t offset, const Shape& shape, const Shape& strides,
               DType dtype)
    : storage_(std::move(storage)),
      shape_(shape),
      strides_(strides),
      offset_(offset),
      dtype_(dtype),
      device_(storage_ ? storage_->device() : Device::meta) {}

Tensor Tensor::of(const std::vector<double>& values, const Shape& shape, DType dtype) {
  check(int64_t(values.size()) == shape.numel(), "tensor: ", values.size(), " values for shape ", shape);
  Tensor wide(shape, DType::f64);
  std::copy(values.begin(), values.end(), wide.data<double>());
  return wide.to(dtype);
}

bool Tensor::is_contiguous() const {
  int64_t step = 1;
  for (int i = dims() - 1; i >= 0; --i) {
    if (shape_[i] == 1) continue;
    if (strides_[i] != step) return false;
    step *= shape_[i];
  }
  return true;
}

double Tensor::item() const {
  check(numel() == 1, "item: tensor has shape ", shape_);
  return to_vector()[0];
}

std::vector<double> Tensor::to_vector() const {
  NoGrad off;
  const Tensor wide = to(Device::cpu).to(DType::f64).contiguous();
  const double* p = wide.data<double>();
  return {p, p + wide.numel()};
}

namespace {

void check_off_tape(const Tensor& t, const char* who) {
  check(!(grad_enabled() && t.requires_grad()), who, ": changes a tensor that needs a gradient (shape ",
        t.shape(), "); use NoGrad if that is meant");
}

void check_broadcasts(const Tensor& source, const Tensor& into, const char* who) {
  check(broadcast_shapes(into.shape(), source.shape(), who) == into.shape(), who, ": shape ", source.shape(),
        " into ", into.shape());
}

// Between devices: dense bytes cross, the strides, broadcasts and conversions happen on either side.
void copy_across(const Tensor& to, const Tensor& from) {
  if constexpr (kHasCuda) {
    const NoGrad off;
    const Tensor dense = from.detach().contiguous();
    if (to.is_contiguous() && to.dtype() == from.dtype() && to.shape() == from.shape())
      return cuda::transfer(to, dense);
    // Conversions are done where the smaller type is what crosses.
    const bool shrinks = size_of(to.dtype()) < size_of(from.dtype());
    const Tensor sent = shrinks ? dense.to(to.dtype()) : dense;
    const Tensor arrived(sent.shape(), sent.dtype(), to.device());
    cuda::transfer(arrived, sent);
    to.copy_from(arrived);
  }
}

}  // namespace

const Tensor& Tensor::copy_from(const Tensor& source) const {
  check_off_tape(*this, "copy_from");
  check_broadcasts(source, *this, "copy_from");
  for (Device d : {device_, source.device()})
    check(d == Device::cpu || (kHasCuda && d == Device::cuda), "copy_from: ", source.device(), " to ",
          device_, " is not possible in this build");
  if (device_ == source.device())
    ON_DEVICE(*this, copy(*this, source));
  else
    copy_across(*this, source);
  return *this;
}

const Tensor& Tensor::fill(double value) const {
  check_off_tape(*this, "fill");
  ON_DEVICE(*this, fill(*this, value));
  return *this;
}

const Tensor& Tensor::add_in_place(const Tensor& source, double scale) const {
  check_off_tape(*this, "add_in_place");
  check(source.dtype() == dtype_, "add_in_place: ", source.dtype(), " into ", dtype_);
  check(source.device() == device_, "add_in_place: ", source.device(), " into ", device_);
  check_broadcasts(source, *this, "add_in_place");
  ON_DEVICE(*this, add_in_place(*this, source, scale));
  return *this;
}

Tensor zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t(shape, dtype, device);
  if (device == Device::cpu)
    std::memset(t.raw(), 0, size_t(t.bytes()));
  else if (device != Device::meta)
    t.fill(0);
  return t;
}

Tensor full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor t(shape, dtype, device);
  if (device != Device::meta) t.fill(value);
  return t;
}

Tensor ones(const Shape& shape, DType dtype, Device device) { return full(shape, 1, dtype, device); }

Tensor arange(int64_t n, DType dtype, Device device) {
  Tensor t({n}, DType::i64);
  for (int64_t i = 0; i < n; ++i) t.data<int64_t>()[i] = i;
  return t.to(dtype).to(device);
}

Tensor empty_like(const Tensor& x) { return Tensor(x.shape(), x.dtype(), x.device()); }
Tensor zeros_like(const Tensor& x) { return zeros(x.shape(), x.dtype(), x.device()); }

}  // namespace rivulet
