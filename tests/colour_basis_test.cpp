// The colour functions of a source: what each one answers to, and that they survive the trip through patches.
#include <doctest/doctest.h>

#include "models/colour_basis.h"
#include "models/edit_model.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/fixtures.h"

using namespace rivulet;

namespace {

constexpr int64_t kSide = 16;

Tensor flat(double r, double g, double b) {
  const Tensor colour = Tensor::of({r, g, b}, {1, 1, 1, 3});
  return (zeros({1, kSide, kSide, 3}) + colour).contiguous();
}

// Energy of each group of the basis: the source, primaries, secondaries, tone and edges.
std::vector<double> energy(const Tensor& pixels) {
  const PatchCodec codec(8);
  const Tensor basis = colour_basis(codec, codec.encode(pixels));
  std::vector<double> result;
  for (int64_t k = 0; k < 3 + kColourFunctions; k += 3)
    result.push_back(sum(square(basis.slice(2, k, k + 3))).item());
  return result;
}

}  // namespace

TEST_CASE("the basis begins with the source itself") {
  const PatchCodec codec(4);
  Rng rng{3};
  const Tensor latents = randn({2, 48, 3, 2, 5}, rng);
  const Tensor basis = colour_basis(codec, latents);
  CHECK(basis.shape() == Shape{2, 16, 3 + kColourFunctions, 30});
  const Tensor own = basis.slice(2, 0, 3).reshape({2, 48, 3, 2, 5});
  CHECK(max(abs(own - latents)).item() == 0);
}

TEST_CASE("each batch entry has the functions of its own frames") {
  const PatchCodec codec(4);
  Rng rng{4};
  const Tensor latents = randn({2, 48, 3, 2, 5}, rng);
  const Tensor both = colour_basis(codec, latents), second = colour_basis(codec, latents.slice(0, 1, 2));
  CHECK(max(abs(both.slice(0, 1, 2) - second)).item() < 1e-5);
}

TEST_CASE("primaries answer to primaries, secondaries to secondaries, neither to grey") {
  const auto red = energy(flat(0.9, 0.1, 0.1)), yellow = energy(flat(0.9, 0.9, 0.1)),
             grey = energy(flat(0.5, 0.5, 0.5)), beige = energy(flat(0.6, 0.55, 0.5));
  CHECK(red[1] > 1);
  CHECK(red[2] < 1e-6);
  CHECK(yellow[2] > 1);
  CHECK(yellow[1] < 1e-6);
  CHECK(grey[1] + grey[2] < 1e-6);
  CHECK(beige[1] + beige[2] < 1e-6);
}

TEST_CASE("an orange leans on red and yellow less than their sum: the bands are narrow") {
  const auto orange = energy(flat(0.9, 0.5, 0.1)), red = energy(flat(0.9, 0.1, 0.1));
  // Half red and half yellow, each squared: a quarter of the amount, a sixteenth of the energy.
  CHECK(orange[1] == doctest::Approx(red[1] / 16).epsilon(0.02));
}

TEST_CASE("a flat picture has no dark edge, a step has one on its dark side only") {
  Tensor step = flat(0.2, 0.2, 0.2).clone();
  step.slice(2, 8, 16).fill(0.8);
  const PatchCodec codec(8);
  const auto tone = [&](const Tensor& pixels) {
    // The third group holds [luma^2, dark, dark^2] in a fixed rotation; luma^2 alone is the same in both
    // halves.
    return colour_basis(codec, codec.encode(pixels)).slice(2, 9, 12).contiguous();
  };
  const Tensor of_step = tone(step), of_flat = tone(flat(0.2, 0.2, 0.2)),
               of_light = tone(flat(0.8, 0.8, 0.8));
  const auto patch = [](const Tensor& t, int64_t i) { return t.reshape({64, 3, 2, 2}).select(3, i); };
  CHECK(max(abs(patch(of_step, 0) - patch(of_flat, 0))).item() > 0.1);
  CHECK(max(abs(patch(of_step, 1) - patch(of_light, 1))).item() < 1e-4);
}

TEST_CASE("an untrained colour_residual copies its source, and gradients reach every coefficient") {
  EditModel model(tiny_editor_config());
  Rng rng{5};
  model.initialise(rng);
  const Tensor latents = randn({1, 48, 3, 2, 2}, rng) * 0.3, x = randn({1, 48, 3, 2, 2}, rng);
  const SourceLatents source = model.source(latents);
  const Tensor sigma = Tensor::of({0.5}, {1}).to(DType::f32);
  model.dit.final_linear.bias.set_requires_grad(true);
  const Tensor v = model.velocity(x, source, sigma, {}, model.encode({""}));
  CHECK(max(abs(x - v * 0.5 - latents)).item() < 1e-5);
  backward(sum(square(v)));
  const auto gradient = model.dit.final_linear.bias.grad().to_vector();
  int reached = 0;
  for (size_t i = 12; i < 48; ++i) reached += gradient[i] != 0;
  CHECK(reached == 36);
}
