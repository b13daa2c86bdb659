// The transformer beyond what the golden files exercise: properties that hold for any weights (dit.md 11).
#include <doctest/doctest.h>

#include <cmath>

#include "models/editor.h"
#include "models/golden.h"
#include "ops/elementwise.h"
#include "ops/shape.h"

using namespace rivulet;

namespace {

DitConfig tiny(const std::string& variant = "streaming") {
  DitConfig c;
  c.variant = variant;
  c.depth = 3;
  c.width = 48;
  c.heads = 2;
  c.softmax_blocks = {1};
  c.latent_channels = 5;
  c.caption_channels = 7;
  return c;
}

// Weights that leave nothing at zero, so that every path shows.
Dit random_dit(const DitConfig& config, uint64_t seed = 11) {
  Dit dit(config);
  Rng rng{seed};
  dit.initialise(rng);
  const NoGrad off;
  for (const auto& [name, t] : named_tensors(dit)) t.add_in_place(randn(t.shape(), rng), 0.1);
  return dit;
}

struct Inputs {
  Tensor x, text, mask;
};
Inputs inputs(int64_t B, int64_t T, int64_t H = 3, int64_t W = 4, uint64_t seed = 5) {
  Rng rng{seed};
  Inputs in{randn({B, 10, T, H, W}, rng), randn({B, 6, 7}, rng), ones({B, 6}, DType::u8)};
  in.mask.slice(1, 4, 6).fill(0);
  return in;
}

// A stream through the cache passes: what chunk c shows given clean chunks before it.
Tensor streamed(const Dit& dit, const Inputs& in, const std::vector<int64_t>& bounds, double t) {
  const NoGrad off;
  const TextContext text = dit.text_context(in.text, in.mask);
  StreamState state;
  Tensors out;
  for (size_t c = 0; c + 1 < bounds.size(); ++c) {
    const Tensor x = in.x.slice(2, bounds[c], bounds[c + 1]);
    out.push_back(dit(x, full({in.x.dim(0)}, t), text, &state));
    StreamState next;
    dit(x, full({in.x.dim(0)}, t), text, &state, &next);
    state = next;
  }
  return cat(out, 2);
}

}  // namespace

TEST_CASE("a batch is the stack of its samples") {
  const NoGrad off;
  const Dit dit = random_dit(tiny());
  const Inputs in = inputs(3, 2);
  const Tensor t = Tensor::of({1000, 500, 20}, {3});
  const Tensor all = dit(in.x, t, dit.text_context(in.text, in.mask));
  for (int64_t b = 0; b < 3; ++b) {
    const auto one = [&](const Tensor& x) { return x.slice(0, b, b + 1); };
    const Tensor alone = dit(one(in.x), one(t), dit.text_context(one(in.text), one(in.mask)));
    CHECK(relative_error(alone, one(all)) < 2e-6);
  }
}

TEST_CASE("equal per-frame timesteps are the same as one per sample, and a frame's own level matters") {
  const NoGrad off;
  const Dit dit = random_dit(tiny());
  const Inputs in = inputs(2, 3);
  const TextContext text = dit.text_context(in.text, in.mask);
  const Tensor whole = dit(in.x, Tensor::of({700, 300}, {2}), text);
  CHECK(relative_error(dit(in.x, Tensor::of({700, 700, 700, 300, 300, 300}, {2, 3}), text), whole) < 1e-6);
  CHECK(relative_error(dit(in.x, Tensor::of({700, 700, 100, 300, 300, 300}, {2, 3}), text), whole) > 1e-3);
}

TEST_CASE("padded text changes nothing") {
  const NoGrad off;
  const Dit dit = random_dit(tiny());
  Inputs in = inputs(1, 2);
  const Tensor t = full({1}, 800);
  const Tensor before = dit(in.x, t, dit.text_context(in.text, in.mask));
  in.text.slice(1, 4, 6).fill(3);
  CHECK(relative_error(dit(in.x, t, dit.text_context(in.text, in.mask)), before) < 1e-7);
  in.text.slice(1, 0, 1).fill(3);
  CHECK(relative_error(dit(in.x, t, dit.text_context(in.text, in.mask)), before) > 1e-4);
}

TEST_CASE("an all-softmax stream with full history is the causal part of the whole sequence") {
  // With no temporal convolution a softmax block's chunk c sees chunks 0..c only: its last chunk must equal
  // the last chunk of one bidirectional pass over everything, since that sees the same keys.
  DitConfig config = tiny();
  config.depth = 1;
  config.softmax_blocks = {0};
  config.cached_chunks = -1;
  const Dit dit = random_dit(config);
  const NoGrad off;
  dit.blocks[0].mlp.t_conv.weight.fill(0);
  const Inputs in = inputs(1, 8);
  const Tensor stream = streamed(dit, in, {0, 2, 5, 8}, 400);
  const Tensor whole = dit(in.x, full({1}, 400), dit.text_context(in.text, in.mask));
  CHECK(relative_error(stream.slice(2, 5, 8), whole.slice(2, 5, 8)) < 2e-6);
  CHECK(relative_error(stream.slice(2, 0, 2), whole.slice(2, 0, 2)) > 1e-3);
}

TEST_CASE(
    "one-frame chunks of a delta-net stream are a causal scan; the last frame sees what the whole clip "
    "sees") {
  DitConfig config = tiny();
  config.depth = 1;
  config.softmax_blocks = {};
  const Dit dit = random_dit(config);
  const NoGrad off;
  const Inputs in = inputs(2, 6);
  const auto whole = [&] { return dit(in.x, full({2}, 250), dit.text_context(in.text, in.mask)); };
  const Tensor chunked = streamed(dit, in, {0, 3, 6}, 250);
  CHECK(relative_error(chunked.slice(2, 5, 6), whole().slice(2, 5, 6)) < 5e-6);
  // The temporal convolution reads the frame before, which in a chunk of its own has not seen this one.
  dit.blocks[0].mlp.t_conv.weight.fill(0);
  const Tensor stream = streamed(dit, in, {0, 1, 2, 3, 4, 5, 6}, 250);
  CHECK(relative_error(stream.slice(2, 5, 6), whole().slice(2, 5, 6)) < 5e-6);
  CHECK(relative_error(stream.slice(2, 4, 5), whole().slice(2, 4, 5)) > 1e-3);
}

TEST_CASE("the window keeps the sink and the chunk before, and the memory stops growing") {
  const NoGrad off;
  const Dit dit = random_dit(tiny());
  const Inputs in = inputs(1, 3, 2, 2);
  const TextContext text = dit.text_context(in.text, in.mask);
  StreamState state;
  int64_t held = 0;
  for (int c = 0; c < 1000; ++c) {
    StreamState next;
    dit(in.x, zeros({1}), text, &state, &next);
    state = next;
    const auto& window = state.blocks[1].window;
    REQUIRE(window.size() == (c == 0 ? 1u : 2u));
    CHECK(window[0].first == 0);
    CHECK(window.back().first == c);
    if (c == 3) held = cpu_memory().now;
    if (c > 3) REQUIRE(cpu_memory().now == held);
  }
  CHECK(state.frames == 3000);
  for (const BlockState& block : state.blocks)
    for (double v : block.conv_tail.to_vector()) REQUIRE(std::isfinite(v));
}

TEST_CASE("without a sink the window is the chunks before") {
  const NoGrad off;
  DitConfig config = tiny();
  config.sink = false;
  const Dit dit = random_dit(config);
  const Inputs in = inputs(1, 1, 2, 2);
  const TextContext text = dit.text_context(in.text, in.mask);
  StreamState state;
  for (int c = 0; c < 5; ++c) {
    StreamState next;
    dit(in.x, zeros({1}), text, &state, &next);
    state = next;
  }
  REQUIRE(state.blocks[1].window.size() == 2);
  CHECK(state.blocks[1].window[0].first == 3);
  CHECK(state.blocks[1].window[1].first == 4);
}

TEST_CASE("the released 2B model has its released size, and describing it allocates nothing") {
  const int64_t before = cpu_memory().now;
  Dit streaming(DitConfig{}, Device::meta);
  const NamedTensors tensors = named_tensors(streaming);
  CHECK(count_elements(tensors) == 2'259'529'648);
  CHECK(tensors.size() == 586);  // 587 with the y_embedding buffer
  CHECK(cpu_memory().now == before);
  DitConfig config;
  config.variant = "bidirectional";
  Dit bidirectional(config, Device::meta);
  CHECK(count_elements(named_tensors(bidirectional)) == 2'159'868'848 - 300 * 2304);
}

TEST_CASE("Euler and re-noising samplers reach the data of an oracle network") {
  Rng rng{3};
  const Tensor x0 = randn({1, 4, 2, 3, 3}, rng), noise = randn(x0.shape(), rng);
  const auto oracle = [&](const Tensor& x, double, double sigma) { return (x - x0) / sigma; };
  for (int64_t steps : {1, 2, 4, 7}) {
    CHECK(relative_error(sample(oracle, noise, {default_steps(steps), false}, rng), x0) < 2e-5);
    CHECK(relative_error(sample(oracle, noise, {default_steps(steps), true}, rng), x0) < 2e-5);
  }
  CHECK_THROWS_WITH_AS(check_steps({1000, 1000}), doctest::Contains("1000"), Error);
  CHECK_THROWS_AS(check_steps({}), Error);
}

TEST_CASE("levels of the distillation table") {
  CHECK(table_level(961) == doctest::Approx(0.96102).epsilon(1e-5));
  CHECK(table_level(893) == doctest::Approx(0.89316).epsilon(1e-5));
  CHECK(table_level(743) == doctest::Approx(0.74256).epsilon(1e-5));
  CHECK(table_level(20) == doctest::Approx(0.0235).epsilon(2e-3));
  CHECK(table_level(0) == doctest::Approx(0.00794).epsilon(1e-3));
}

TEST_CASE("patch latents are orthonormal and invert exactly") {
  Rng rng{9};
  const PatchCodec codec(4);
  const Tensor frames = rand_uniform({2, 8, 12, 3}, 0, 1, rng);
  const Tensor z = codec.encode(frames);
  CHECK(z.shape() == Shape{1, 48, 2, 2, 3});
  CHECK(relative_error(codec.decode(z), frames) < 1e-6);
  const Tensor scaled = frames * 2.0 - 1.0;
  double a = 0, b = 0;
  for (double v : z.to_vector()) a += v * v;
  for (double v : scaled.to_vector()) b += v * v;
  CHECK(a == doctest::Approx(b).epsilon(1e-5));
}
