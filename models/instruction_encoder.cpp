#include "models/instruction_encoder.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/norm.h"

namespace rivulet {

constexpr float kNormEps = 1e-5f;
constexpr int64_t kHeads = 4;

InstructionEncoder::InstructionEncoder(int64_t vocabulary, int64_t tokens, int64_t channels, Device device)
    : word({vocabulary, channels}, DType::f32, device),
      position({tokens, channels}, DType::f32, device),
      norm_attn{Tensor({channels}, DType::f32, device)},
      norm_mlp{Tensor({channels}, DType::f32, device)},
      norm_out{Tensor({channels}, DType::f32, device)},
      qkv({3 * channels, channels}, true, device),
      proj({channels, channels}, true, device),
      fc1({2 * channels, channels}, true, device),
      fc2({channels, 2 * channels}, true, device) {
  check(channels % kHeads == 0, "instruction encoder: ", channels, " channels over ", kHeads, " heads");
}

void InstructionEncoder::initialise(Rng& rng) {
  const NoGrad off;
  for_each_tensor(*this, [&](const std::string& name, Tensor& t) {
    const bool norm = name.rfind("norm", 0) == 0, bias = name.find("bias") != std::string::npos;
    t.fill(norm ? 1 : 0);
    if (norm || bias) return;
    const bool table = name == "word" || name == "position";
    const double std = table ? 0.5 : 1 / std::sqrt(double(t.dim(1)));
    t.add_in_place(randn(t.shape(), rng, DType::f32, t.device()), std);
  });
}

Tensor InstructionEncoder::operator()(const Tensor& ids, const Tensor& mask) const {
  const int64_t B = ids.dim(0), L = ids.dim(1), C = word.dim(1), D = C / kHeads;
  check(L == tokens(), "instruction encoder: ", L, " tokens, the model takes ", tokens());
  Tensor h = embedding(ids, word) + position;
  const Tensor three = qkv(rms_norm(h, norm_attn.weight, kNormEps)).reshape({B, L, 3, kHeads, D});
  const Tensor mixed =
      attention(three.select(2, 0), three.select(2, 1), three.select(2, 2), 1 / std::sqrt(double(D)), mask);
  h = h + proj(mixed.reshape({B, L, C}));
  h = h + fc2(gelu_tanh(fc1(rms_norm(h, norm_mlp.weight, kNormEps))));
  return rms_norm(h, norm_out.weight, kNormEps);
}

}  // namespace rivulet
