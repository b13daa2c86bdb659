// The bf16 kernels of the fused gated delta net over a long stream. Values and gradients: cuda_parity_test.
#include "ops/gdn_fused.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdio>

#include "ops/parity.h"
#include "tensor/autograd.h"
#include "tensor/cuda.h"

using namespace rivulet;

namespace {

// |got - want| / |want|, as vectors.
double distance(const Tensor& got, const Tensor& want) {
  const std::vector<double> g = got.to_vector(), w = want.to_vector();
  double off = 0, size = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    off += (g[i] - w[i]) * (g[i] - w[i]);
    size += w[i] * w[i];
  }
  return std::sqrt(off / size);
}

// One chunk of random projections whose state hardly decays.
GdnFusedInputs make_chunk(int64_t frames, int64_t tokens, int64_t heads, int64_t d, Rng& rng) {
  const Shapes shapes = {{1, frames, tokens, heads * d},
                         {heads * d},
                         {frames * tokens, d / 2},
                         {1, frames, tokens, heads},
                         {1, frames, heads}};
  const auto fill = [&](const Shape& shape, int i) {
    return gdn_fused_case().fill(shape, i, rng, DType::bf16);
  };
  const Tensor decay = rand_uniform(shapes[4], 0.9, 0.999, rng, DType::f32);
  return {fill(shapes[0], 0),
          fill(shapes[0], 1),
          fill(shapes[0], 2),
          fill(shapes[0], 3),
          fill(shapes[1], 4),
          fill(shapes[1], 5),
          fill(shapes[2], 6),
          fill(shapes[2], 7),
          fill(shapes[3], 8),
          decay,
          {}};
}

// The same chunk elsewhere or in another type; the decay stays as precise as it is.
template <class F>
GdnFusedInputs map_chunk(const GdnFusedInputs& x, F&& f) {
  return {f(x.q),   f(x.k),   f(x.v),    f(x.gate),  f(x.q_norm), f(x.k_norm),
          f(x.cos), f(x.sin), f(x.beta), f(x.decay), {}};
}

}  // namespace

TEST_CASE("gdn_fused: 100 chunks in bf16 end as near the f64 state as the first") {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  const NoGrad off;
  for (const int64_t d : {32, 112}) {
    Rng rng{41};
    GdnState state, exact_state;
    double first = 0, worst = 0;
    for (int chunk = 0; chunk < 100; ++chunk) {
      const GdnFusedInputs on_cpu = make_chunk(3, 24, 2, d, rng);
      GdnFusedInputs x = map_chunk(on_cpu, [](const Tensor&t) { return t.to(Device::cuda); }),
                     exact = map_chunk(on_cpu, [](const Tensor&t) { return t.to(DType::f64); });
      x.start = state;
      exact.start = exact_state;
      const double key_scale = 1 / std::sqrt(24.0 * double(d));
      const GdnResult got = gdn_fused(x, key_scale), want = gdn_fused(exact, key_scale);
      state = got.final;
      exact_state = want.final;
      const double error = std::max(distance(got.out.to(Device::cpu), want.out),
                                    distance(state.kv.to(Device::cpu), exact_state.kv));
      if (chunk == 0) first = error;
      worst = std::max(worst, error);
    }
    std::printf("head dim %d: error %.1e in the first chunk, at most %.1e in any\n", int(d), first, worst);
    CHECK(first < 0x1p-7);
    CHECK(worst < 2 * first);
  }
}

TEST_CASE("gdn_fused: frames of many tokens, whole and shared out") {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  // [B, T, S, H, D]: a frame by one block and by several, frames that fill no stage, several batches.
  for (const auto& [b, t, s, h, d] : {std::array<int64_t, 5>{1, 2, 70, 1, 112},
                                      {2, 1, 300, 2, 112},
                                      {1, 12, 65, 12, 112},
                                      {1, 3, 100, 2, 64},
                                      {1, 3, 100, 2, 32}}) {
    const Shape x{b, t, s, h * d};
    OpCase one = gdn_fused_case();
    one.check = {{x,
                  x,
                  x,
                  x,
                  {h * d},
                  {h * d},
                  {t * s, d / 2},
                  {t * s, d / 2},
                  {b, t, s, h},
                  {b, t, h},
                  {b, h, d, d},
                  {b, h, d}}};
    const ParityRow row = check_parity(one, Device::cuda, DType::bf16, false);
    std::printf("%s\n", to_string(row).c_str());
    CHECK_MESSAGE(row.passed(), to_string(row));
  }
}

TEST_CASE("gdn_fused: a chunk's state is that of the plain op on the normed and turned features") {
  const NoGrad off;
  Rng rng{43};
  const GdnFusedInputs x =
      map_chunk(make_chunk(2, 5, 2, 6, rng), [](const Tensor& t) { return t.to(DType::f64); });
  const GdnResult got = gdn_fused(x, 0.25);
  // z of the first frame by hand: b = K' beta, then z <- g (I - K' B K) z + b.
  const std::vector<double> k = x.k.to_vector(), w = x.k_norm.to_vector(), logit = x.beta.to_vector(),
                            decay = x.decay.to_vector(), z_got = got.final.z.to_vector();
  const int heads = 2, d = 6, tokens = 5, channels = heads * d;
  for (int h = 0; h < heads; ++h) {
    std::vector<double> z(d, 0.0);
    for (int f = 0; f < 2; ++f) {
      std::vector<double> before = z;
      for (double& v : before) v *= decay[f * heads + h];
      z = before;
      for (int s = 0; s < tokens; ++s) {
        const double* row = k.data() + (f * tokens + s) * channels;
        double squares = 0, read = 0;
        for (int c = 0; c < channels; ++c) squares += row[c] * row[c];
        const double r = 1 / std::sqrt(squares / channels + 1e-5);
        std::vector<double> key(d);
        for (int i = 0; i < d; ++i) {
          key[i] = 0.25 * std::max(0.0, row[h * d + i] * r * w[h * d + i]);
          read += key[i] * before[i];
        }
        const double beta = 1 / (1 + std::exp(-logit[(f * tokens + s) * heads + h]));
        for (int i = 0; i < d; ++i) z[i] += beta * key[i] * (1 - read);
      }
    }
    for (int i = 0; i < d; ++i) CHECK(z_got[h * d + i] == doctest::Approx(z[i]).epsilon(1e-10));
  }
}
