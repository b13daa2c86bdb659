#include "train/edit_net.h"

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/shape.h"

namespace rivulet {

EditNet net_of(const EditModel& model) {
  return [&model](const NetCall& c) {
    return model.velocity(c.x, model.source(c.source), c.sigma, c.t, c.text, c.past, c.next);
  };
}

Tensor noised(const Tensor& x0, const Tensor& eps, const Tensor& sigma) {
  check(eps.shape() == x0.shape(), "noised: x0 has shape ", x0.shape(), ", eps ", eps.shape());
  const Tensor level = over_latents(sigma).to(x0.device());
  return x0 * (1.0 - level) + eps * level;
}

Tensor clean_of(const Tensor& x, const Tensor& v, const Tensor& sigma) {
  check(v.shape() == x.shape(), "clean_of: x has shape ", x.shape(), ", v ", v.shape());
  return x - v * over_latents(sigma).to(x.device());
}

Tensor chunk_causal(const EditNet& net, const Tensor& x, const Tensor& source, const Tensor& sigma,
                    const Tensor& t, const TextContext& text, const std::vector<int64_t>& chunks) {
  StreamState memory;
  memory.on_tape = true;
  Tensors out;
  int64_t at = 0;
  for (int64_t length : chunks) {
    const auto part = [&](const Tensor& whole, int dim) { return whole.slice(dim, at, at + length); };
    StreamState next;
    out.push_back(net({part(x, 2), part(source, 2), part(sigma, 1), part(t, 1), text, &memory, &next}));
    memory = next;
    at += length;
  }
  check(at == x.dim(2), "chunk_causal: chunks of ", at, " frames for a clip of ", x.dim(2));
  return cat(out, 2);
}

}  // namespace rivulet
