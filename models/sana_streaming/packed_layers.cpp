#include "models/sana_streaming/packed_layers.h"

#include "ops/elementwise.h"
#include "ops/temporal_conv.h"

namespace rivulet {
namespace {

Shape with_last(Shape shape, int64_t n) {
  shape[shape.size() - 1] = n;
  return shape;
}

// x as the products of a layer read it.
QuantizedMatrix rounded(const Tensor& x, const PackedLayer& layer) {
  const Format format = layer.choice.format;
  if (!layer.choice.static_scale) return quantize(x, format);
  if (!layer.measuring) return quantize(x, format, layer.input_scale);
  const QuantizedMatrix q = quantize(x, format);
  layer.input_scale.copy_from(maximum(layer.input_scale, q.scales * PackedLayer::kHeadroom));
  return q;
}

ProductOptions options_of(const PackedLayer& layer) {
  return {ProductOptions::Execution::automatic, layer.choice.fast_sums};
}

// Rows of one weight against x, in the dtype of the model.
Tensor multiply(Operand& x, const PackedLayer& layer, const QuantizedMatrix& w, const Tensor& bias,
                const Tensor& addend, DType dtype) {
  if (layer.choice.weight_only) {
    const Tensor wide = dequantize(w, dtype);
    return addend ? linear_add(x.x(), wide, bias, addend) : linear(x.x(), wide, bias);
  }
  const QuantizedMatrix& in = x.for_layer(layer);
  const Tensor more = addend ? addend.contiguous().reshape({in.rows, w.rows}) : addend;
  return quantized_linear(in, w, bias ? bias.contiguous() : bias, more, dtype, options_of(layer))
      .reshape(with_last(x.shape(), w.rows));
}

}  // namespace

int64_t PackedLayer::bytes() const {
  int64_t total = (up ? up.bytes() : 0) + (down ? down.bytes() : 0);
  for (const QuantizedMatrix& w : weights)
    total += w.codes.bytes() + (w.scales.numel() > 1 ? w.scales.bytes() : 0);
  return total;
}

PackedLayer pack(const Tensor& w, const Choice& choice) {
  PackedLayer layer;
  layer.choice = choice;
  if (choice.plain()) return layer;
  const NoGrad off;
  Tensor rest = w.detach();
  if (choice.rank > 0) {
    const LowRank branch = split_low_rank(rest, choice.rank);
    rest = branch.rest.reshape(w.shape());
    layer.up = branch.up;
    layer.down = branch.down;
  }
  // Taps share what the whole weight shares.
  const QuantizedMatrix all = quantize(rest, choice.weight_format());
  const int64_t taps = w.dims() == 3 ? w.dim(0) : 1, rows = all.rows / taps;
  for (int64_t k = 0; k < taps; ++k) layer.weights.push_back(rows_of(all, k * rows, rows));
  if (choice.static_scale) layer.input_scale = zeros({1}, DType::f32, w.device());
  return layer;
}

Operand::Operand(const Tensor& x, const Shape& shape, const QuantizedMatrix& rows) : x_(x), shape_(shape) {
  rounded_[size_t(rows.format)] = rows;
}

const Tensor& Operand::x() const {
  check(x_.defined(), "operand: what was not kept is read");
  return x_;
}

const QuantizedMatrix& Operand::for_layer(const PackedLayer& layer) {
  QuantizedMatrix& q = rounded_[size_t(layer.choice.format)];
  // Codes of another layer with their own scale serve as well.
  if (!q.codes) q = rounded(x(), layer);
  return q;
}

Operand Operand::frames(int64_t begin, int64_t end) const {
  Operand out;
  out.shape_ = shape_;
  out.shape_[1] = end - begin;
  if (x_) out.x_ = x_.slice(1, begin, end);
  const int64_t rows = shape_[2];
  for (size_t f = 0; f < rounded_.size(); ++f)
    if (rounded_[f].codes) out.rounded_[f] = rows_of(rounded_[f], begin * rows, (end - begin) * rows);
  return out;
}

Tensor product(Operand& x, const Linear& l, const PackedLayer& layer, const Tensor& addend) {
  if (!layer.packed()) return addend ? linear_add(x.x(), l.matrix(), l.bias, addend) : l(x.x());
  const DType dtype = l.weight.dtype();
  const Tensor y = multiply(x, layer, layer.weights[0], l.bias, addend, dtype);
  return layer.up ? linear_add(linear(x.x(), layer.down), layer.up, {}, y) : y;
}

Tensor product_of_rows(Operand& x, const PackedLayer& layer, int64_t first, int64_t last, const Tensor& bias,
                       DType dtype) {
  const Tensor y = multiply(x, layer, rows_of(layer.weights[0], first, last - first), bias, {}, dtype);
  return layer.up ? linear_add(linear(x.x(), layer.down), layer.up.slice(0, first, last), {}, y) : y;
}

namespace {

// The frames of r [1, T, S, C] rounded, and the one before. Where no scale spans them all lie one
// after the other, and `shifted` is [before, all but the last].
struct Rounded {
  QuantizedMatrix own, before, shifted;
};
Rounded rounded_frames(const Tensor& r, const Tensor& left, const PackedLayer& layer) {
  const Format format = layer.choice.format;
  const bool scaled = layer.choice.static_scale && !layer.measuring;
  const int64_t T = r.dim(1), S = r.dim(2), C = r.dim(3);
  if (format != Format::fp8 && !scaled) return {rounded(r, layer), rounded(left, layer), {}};
  QuantizedMatrix all{format,
                      (T + 1) * S,
                      C,
                      Tensor({(T + 1) * S, C}, DType::u8, r.device()),
                      scaled ? layer.input_scale : Tensor({(T + 1) * S}, DType::f32, r.device()),
                      {}};
  quantize_into(left, rows_of(all, 0, S));
  quantize_into(r, rows_of(all, S, T * S));
  return {rows_of(all, S, T * S), rows_of(all, 0, S), rows_of(all, 0, T * S)};
}

}  // namespace

Tensor temporal_product(const Tensor& r, const Tensor& left, const NormWeight& t_conv,
                        const PackedLayer& layer) {
  if (!layer.packed()) return temporal_conv3(r, t_conv.weight, left, /*residual=*/true);
  const int64_t T = r.dim(1), S = r.dim(2), C = r.dim(3), N = t_conv.weight.dim(0);
  // Taps as the released weight lists them, for products that read the activation as it is.
  const auto released = [](const Tensor& taps) { return taps.permute({1, 2, 0}).unsqueeze(3); };
  Tensor y;
  if (layer.choice.weight_only) {
    const Tensor taps({3, N, C}, r.dtype(), r.device());
    for (int64_t k = 0; k < 3; ++k)
      taps.select(0, k).copy_from(dequantize(layer.weights[size_t(k)], r.dtype()));
    y = temporal_conv3(r, released(taps), left, /*residual=*/true);
  } else {
    y = Tensor({1, T, S, N}, r.dtype(), r.device());
    const Rounded in = rounded_frames(r, left, layer);
    const auto tap = [&](int k, const QuantizedMatrix& from, int64_t to, int64_t frames,
                         const Tensor& addend) {
      if (frames == 0) return;
      const Tensor out = y.reshape({T * S, N}).slice(0, to * S, (to + frames) * S);
      quantized_linear_into(from, layer.weights[size_t(k)], {}, addend ? addend : out, out,
                            options_of(layer));
    };
    tap(1, in.own, 0, T, r.contiguous().reshape({T * S, C}));
    if (in.shifted.codes) {
      tap(0, in.shifted, 0, T, {});
    } else {
      tap(0, rows_of(in.own, 0, (T - 1) * S), 1, T - 1, {});
      tap(0, in.before, 0, 1, {});
    }
    tap(2, rows_of(in.own, S, (T - 1) * S), 0, T - 1, {});
  }
  if (!layer.up) return y;
  const Tensor wide = released(layer.up.reshape({3, N, layer.up.dim(1)}));
  return y + temporal_conv3(linear(r, layer.down), wide, linear(left, layer.down));
}

}  // namespace rivulet
