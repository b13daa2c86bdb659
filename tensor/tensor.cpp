#include "tensor/tensor.h"

#include "tensor/autograd.h"
#include "tensor/strided.h"

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

template <class To, class From>
void copy_run(To* to, int64_t to_step, const From* from, int64_t from_step, int64_t n) {
  const auto convert = [](From x) -> To {
    if constexpr (std::is_same_v<To, From>)
      return x;
    else if constexpr (std::is_same_v<To, bf16> || std::is_same_v<To, f16>)
      return To(static_cast<float>(x));
    else if constexpr (std::is_same_v<From, bf16> || std::is_same_v<From, f16>)
      return static_cast<To>(static_cast<float>(x));
    else
      return static_cast<To>(x);
  };
  if (to_step == 1 && from_step == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = convert(from[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i * to_step] = convert(from[i * from_step]);
}

// Same-dtype copies move whole words, so they need no type and serve the storage-only formats too.
template <class Word>
void copy_words(const Tensor& to, const Tensor& from, const StridedLoop<2>& loop) {
  auto* t = static_cast<Word*>(to.raw());
  const auto* f = static_cast<const Word*>(from.raw());
  loop.for_each_row([&](const std::array<int64_t, 2>& at, int64_t n) {
    copy_run(t + at[0], loop.inner(0), f + at[1], loop.inner(1), n);
  });
}

void copy_same(const Tensor& to, const Tensor& from, const StridedLoop<2>& loop) {
  switch (size_of(to.dtype())) {
    case 8:
      return copy_words<uint64_t>(to, from, loop);
    case 4:
      return copy_words<uint32_t>(to, from, loop);
    case 2:
      return copy_words<uint16_t>(to, from, loop);
    default:
      return copy_words<uint8_t>(to, from, loop);
  }
}

void check_off_tape(const Tensor& t, const char* who) {
  check(!(grad_enabled() && t.requires_grad()), who, ": changes a tensor that needs a gradient (shape ",
        t.shape(), "); use NoGrad if that is meant");
}

}  // namespace

const Tensor& Tensor::copy_from(const Tensor& source) const {
  check_off_tape(*this, "copy_from");
  check(device_ == Device::cpu && source.device() == Device::cpu, "copy_from: ", source.device(), " to ",
        device_, " needs a build with that device");
  check(broadcast_shapes(shape_, source.shape(), "copy_from") == shape_, "copy_from: shape ", source.shape(),
        " into ", shape_);
  const StridedLoop<2> loop(shape_, {strides_, broadcast_strides(source.shape(), source.strides(), shape_)});
  if (source.dtype() == dtype_) {
    copy_same(*this, source, loop);
    return *this;
  }
  dispatch_any(dtype_, "copy_from", [&]<class To>() {
    dispatch_any(source.dtype(), "copy_from", [&]<class From>() {
      To* to = data<To>();
      const From* from = source.data<From>();
      loop.for_each_row([&](const std::array<int64_t, 2>& at, int64_t n) {
        copy_run(to + at[0], loop.inner(0), from + at[1], loop.inner(1), n);
      });
    });
  });
  return *this;
}

const Tensor& Tensor::fill(double value) const {
  return copy_from(dispatch_any(dtype_, "fill", [&]<class T>() {
    Tensor one(Shape{}, dtype_);
    if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>)
      *one.data<T>() = T(float(value));
    else
      *one.data<T>() = static_cast<T>(value);
    return one;
  }));
}

const Tensor& Tensor::add_in_place(const Tensor& source, double scale) const {
  check_off_tape(*this, "add_in_place");
  check(source.dtype() == dtype_, "add_in_place: ", source.dtype(), " into ", dtype_);
  check(broadcast_shapes(shape_, source.shape(), "add_in_place") == shape_, "add_in_place: shape ",
        source.shape(), " into ", shape_);
  if (is_half(dtype_)) {
    const NoGrad off;
    const Tensor sum = to(DType::f32);
    return copy_from(sum.add_in_place(source.to(DType::f32), scale));
  }
  const StridedLoop<2> loop(shape_, {strides_, broadcast_strides(source.shape(), source.strides(), shape_)});
  dispatch_real(dtype_, "add_in_place", [&]<class T>() {
    T* to = data<T>();
    const T* from = source.data<T>();
    const T s = T(scale);
    loop.for_each_row([&](const std::array<int64_t, 2>& at, int64_t n) {
      T* t = to + at[0];
      const T* f = from + at[1];
      const int64_t ts = loop.inner(0), fs = loop.inner(1);
      if (ts == 1 && fs == 1)
        for (int64_t i = 0; i < n; ++i) t[i] += s * f[i];
      else
        for (int64_t i = 0; i < n; ++i) t[i * ts] += s * f[i * fs];
    });
  });
  return *this;
}

Tensor zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t(shape, dtype, device);
  if (device == Device::cpu) std::memset(t.raw(), 0, size_t(t.bytes()));
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
