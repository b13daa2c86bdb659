#include "models/gemma2/gemma2.h"

#include <cmath>

#include "ops/causal_softmax.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace rivulet {
namespace {

Linear layer(int64_t out, int64_t in, Device device) { return Linear({out, in}, false, device); }

// cos and sin [N, D / 2] of positions 0, 1, ..., rounded to the dtype of the activations as the released
// pipeline does.
std::pair<Tensor, Tensor> position_tables(int64_t n, int64_t d, double theta, DType dtype, Device device) {
  Tensor cos({n, d / 2}), sin({n, d / 2});
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < d / 2; ++j) {
      const double angle = double(i) * std::pow(theta, -2.0 * double(j) / double(d));
      cos.data<float>()[i * (d / 2) + j] = float(std::cos(angle));
      sin.data<float>()[i * (d / 2) + j] = float(std::sin(angle));
    }
  const auto place = [&](const Tensor& t) { return t.to(dtype).to(DType::f32).to(device); };
  return {place(cos), place(sin)};
}

}  // namespace

Gemma2Layer::Gemma2Layer(const Gemma2Config& c, Device device)
    : q(layer(c.heads * c.head_dim, c.width, device)),
      k(layer(c.kv_heads * c.head_dim, c.width, device)),
      v(layer(c.kv_heads * c.head_dim, c.width, device)),
      o(layer(c.width, c.heads * c.head_dim, device)),
      gate(layer(c.mlp, c.width, device)),
      up(layer(c.mlp, c.width, device)),
      down(layer(c.width, c.mlp, device)) {
  for (NormWeight* norm : {&input_norm, &post_attention_norm, &pre_mlp_norm, &post_mlp_norm})
    norm->weight = Tensor({c.width}, DType::f32, device);
}

Gemma2::Gemma2(const Gemma2Config& c, Device device)
    : embedding({c.vocabulary, c.width}, DType::f32, device),
      layers(size_t(c.depth), Gemma2Layer()),
      norm{Tensor({c.width}, DType::f32, device)},
      config_(c) {
  for (Gemma2Layer& l : layers) l = Gemma2Layer(c, device);
}

// What all layers share.
struct Gemma2::Pass {
  Tensor cos, sin, mask;
  double cap;
};

Tensor Gemma2::attention(const Gemma2Layer& l, const Tensor& x, const Pass& pass, bool windowed) const {
  const int64_t B = x.dim(0), N = x.dim(1), D = config_.head_dim, groups = config_.kv_heads,
                shared = config_.heads / groups;
  // A pair of the rotation is (j, j + D/2) here. Put side by side they are the pairs of rope(), and the
  // products of queries and keys do not change when both are put in the same order.
  const auto turn = [&](const Tensor& y) {
    const Tensor pairs = y.reshape({B, N, -1, 2, D / 2}).transpose(3, 4);
    return rope(pairs.contiguous().reshape({B, N, -1, D}), pass.cos, pass.sin);
  };
  // Head h reads group h / shared: the queries of a group are the rows of one product with its keys. Scores
  // and weights are f32 whatever the rest is.
  const Tensor q = turn(l.q(x)).reshape({B, N, groups, shared, D}).permute({0, 2, 3, 1, 4});
  const Tensor queries = q.to(DType::f32).reshape({B, groups, shared * N, D});
  const Tensor keys = turn(l.k(x)).to(DType::f32).permute({0, 2, 3, 1});
  const Tensor values = l.v(x).to(DType::f32).reshape({B, N, groups, D}).permute({0, 2, 1, 3});
  const CausalSoftmax softmax{
      .scale = 1 / std::sqrt(config_.query_scale), .cap = pass.cap, .window = windowed ? config_.window : 0};
  const Tensor scores = matmul(queries, keys).reshape({B, groups * shared, N, N});
  const Tensor weights = causal_softmax(scores, softmax, pass.mask).reshape({B, groups, shared * N, N});
  const Tensor out = matmul(weights, values).reshape({B, groups, shared, N, D}).permute({0, 3, 1, 2, 4});
  return l.o(out.to(x.dtype()).reshape({B, N, groups * shared * D}));
}

Tensor Gemma2::operator()(const Tensor& ids, const Tensor& mask, bool soft_cap) const {
  check(ids.dims() == 2 && ids.numel() > 0, "gemma2: ids have shape ", ids.shape(), ", wanted [B, N]");
  check(!mask || mask.shape() == ids.shape(), "gemma2: mask has shape ", mask ? mask.shape() : Shape{},
        ", ids ", ids.shape());
  const Device device = norm.weight.device();
  const DType dtype = norm.weight.dtype();
  const double eps = config_.norm_eps;
  const auto normed = [eps](const Tensor& x, const NormWeight& w) { return rms_norm(x, w.weight, eps, 1); };
  const auto [cos, sin] = position_tables(ids.dim(1), config_.head_dim, config_.rope_theta, dtype, device);
  const Pass pass{cos, sin, mask ? mask.to(device) : mask, soft_cap ? config_.soft_cap : 0};
  // The factor is rounded to the dtype as well; 48 of the 2B model is exact.
  const double factor = full({1}, std::sqrt(double(config_.width)), dtype).item();
  Tensor x = rivulet::embedding(ids.to(embedding.device()), embedding).to(device).to(dtype) * factor;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Gemma2Layer& l = layers[i];
    const bool windowed = config_.windowed.empty() ? i % 2 == 0 : bool(config_.windowed[i]);
    x = x + normed(attention(l, normed(x, l.input_norm), pass, windowed), l.post_attention_norm);
    const Tensor n = normed(x, l.pre_mlp_norm);
    x = x + normed(l.down(gelu_tanh(l.gate(n)) * l.up(n)), l.post_mlp_norm);
  }
  return normed(x, norm);
}

}  // namespace rivulet
