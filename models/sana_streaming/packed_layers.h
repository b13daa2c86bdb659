// Products of the fast transformer in the formats of a policy: weights kept in few bits, activations rounded
// on their way in, by the kernels of ops/quantized_linear.h.
#pragma once

#include "nn/precision.h"
#include "ops/quantized_linear.h"

namespace rivulet {

// The weight of a layer as a policy wants it kept. Empty: as the model has it.
struct PackedLayer {
  Choice choice;
  std::vector<QuantizedMatrix> weights;  // one; of the temporal convolution one for each tap
  Tensor up, down;                       // of a low-rank branch, in the model's dtype
  // Of activations with a static scale: f32 [1], kHeadroom times what the largest value of those seen asked
  // for. While measuring, activations are rounded by their own scale.
  Tensor input_scale;
  bool measuring = false;
  static constexpr double kHeadroom = 2;

  bool packed() const { return !weights.empty(); }
  // Whether it reads codes that the op before can make, and nothing else: rows of E4M3, or E4M3 of a known
  // scale.
  bool reads_codes() const {
    return packed() && choice.rank == 0 && !choice.weight_only &&
           (choice.format == Format::fp8 || (choice.static_scale && !measuring));
  }
  int64_t bytes() const;
};
// w [N, K], or [taps, N, K].
PackedLayer pack(const Tensor& w, const Choice& choice);

// An activation [..., K] on its way into products: rounded once for each format that is asked for.
class Operand {
 public:
  Operand() = default;
  Operand(const Tensor& x) : x_(x), shape_(x.shape()) {}
  // Rounded already; x may be undefined when nobody reads it.
  Operand(const Tensor& x, const Shape& shape, const QuantizedMatrix& rows);

  const Tensor& x() const;
  const Shape& shape() const { return shape_; }
  const QuantizedMatrix& for_layer(const PackedLayer& layer);
  // Entries [begin, end) of dim 1 of [1, T, S, K].
  Operand frames(int64_t begin, int64_t end) const;

 private:
  Tensor x_;
  Shape shape_;
  std::array<QuantizedMatrix, kFormats> rounded_;
};

// x W^T + bias + addend [..., N], by the packed weight if there is one.
Tensor product(Operand& x, const Linear& l, const PackedLayer& layer, const Tensor& addend = {});
// The same of rows [first, last) of a packed weight.
Tensor product_of_rows(Operand& x, const PackedLayer& layer, int64_t first, int64_t last, const Tensor& bias,
                       DType dtype);
// r + conv(r) over time (ops/temporal_conv.h); r [1, T, S, C], left [1, S, C].
Tensor temporal_product(const Tensor& r, const Tensor& left, const NormWeight& t_conv,
                        const PackedLayer& layer);

}  // namespace rivulet
