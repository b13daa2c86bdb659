#include "apps/dit_costs.h"

namespace rivulet {

std::map<std::string, Cost> pass_costs(const DitConfig& c, int64_t tokens, int64_t T, int64_t keys,
                                       int64_t text) {
  constexpr double kBytes = 2;
  const double N = double(tokens), C = double(c.width), L = double(c.depth), D = C / double(c.heads);
  const double S = N / double(T), soft = double(c.softmax_blocks.size()), delta = L - soft;
  const double hidden = double(c.mlp_ratio) * C, latent = double(c.latent_channels), nH = double(c.heads);
  const auto product = [&](double rows, double out, double in, double times, double extra_reads = 0) {
    return Cost{2 * rows * out * in * times,
                kBytes * times * (rows * in + out * in + rows * out * (1 + extra_reads)), true};
  };
  const auto sweep = [&](double elements, double times) { return Cost{0, kBytes * elements * times, false}; };
  const auto attend = [&](double seen, double times) {
    return Cost{4 * N * seen * C * times, kBytes * times * (2 * N * C + 2 * seen * C), true};
  };
  std::map<std::string, Cost> costs;
  Cost projections = product(N, 4 * C, C, L);
  const Cost rates = product(N, 2 * nH, C, delta);  // of the same product: its input is read once
  projections.flops += rates.flops;
  projections.bytes += rates.bytes - kBytes * delta * N * C;
  costs["q|k|v|gate"] = projections;
  costs["self proj"] = product(N, C, C, L);
  costs["cross q"] = product(N, C, C, L);
  costs["cross proj, residual"] = product(N, C, C, L, 1);
  costs["inverted"] = product(N, 2 * hidden, C, L);
  costs["point"] = product(N, C, hidden, L);
  // The last frame has no right neighbour.
  Cost conv = product(N, C, 3 * C, L, 1);
  conv.flops -= 2 * S * C * C * L;
  conv.bytes -= kBytes * L * 2 * N * C;  // the three taps read the same rows
  costs["temporal conv"] = conv;
  costs["decay"] = sweep(N * nH, delta);
  // Key-key and key-value products of every frame, then the reading of the state: dit.md 2.4.
  costs["delta net"] = Cost{delta * 8 * N * C * D, kBytes * delta * 5 * N * C, false};
  costs["q, k norm and rotation"] = sweep(4 * N * C, soft);
  costs["attention"] = attend(double(keys), soft);
  costs["output gate"] = sweep(3 * N * C, soft);
  costs["cross q norm"] = sweep(2 * N * C, L);
  costs["cross attention"] = attend(double(text), L);
  costs["gate, residual"] = sweep(3 * N * C, L);
  costs["norm, modulate"] = sweep(2 * N * C, L);
  costs["gate, residual, norm, modulate"] = sweep(4 * N * C, L);
  costs["depthwise, gate"] = Cost{L * (18 * N * 2 * hidden), kBytes * L * N * 3 * hidden, false};
  Cost embed = product(N, C, latent, 1, 1);
  embed.bytes += kBytes * 2 * N * C;
  costs["patch embedding, first norm"] = embed;
  costs["output head"] = product(N, latent, C, 1, 1);
  return costs;
}

}  // namespace rivulet
