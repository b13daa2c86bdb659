#include <doctest/doctest.h>

#include "models/golden.h"
#include "models/ltx2_vae/vae_stream.h"
#include "ops/elementwise.h"
#include "ops/shape.h"
#include "tensor/cuda.h"

using namespace rivulet;

namespace {

VideoVaeConfig small_config(Border decoder_border) {
  VideoVaeConfig c;
  c.latent_channels = 8;
  c.encoder_width = 32;
  c.encoder = {{1, {1, 2, 2}, 64}, {1, {2, 1, 1}, 64}, {1, {2, 2, 2}, 128}};
  c.encoder_mid_layers = 1;
  c.decoder_width = 128;
  c.decoder_mid_layers = 1;
  c.decoder = {{1, {2, 2, 2}, 64}, {2, {2, 1, 1}, 64}, {1, {1, 2, 2}, 64}};
  c.decoder_border = decoder_border;
  return c;
}

constexpr int64_t kHeight = 48, kWidth = 32, kFrames = 17;

// What VideoVae makes of a clip, and how far VaeStream is from it, encoding and decoding in pieces.
struct Errors {
  double latents, pixels;
};

Errors stream_errors(Border border, DType dtype, Device device, const std::vector<int64_t>& pieces) {
  const NoGrad off;
  Rng rng{3};
  VideoVae vae(small_config(border));
  vae.initialise(rng);
  for_each_tensor(vae, [&](const std::string& name, Tensor& t) {
    if (name.find("bias") != std::string::npos) t.copy_from(randn(t.shape(), rng) * full({1}, 0.1));
    t.copy_from(t.to(dtype));
  });
  vae.latents_mean.copy_from(randn({8}, rng));
  vae.latents_std.copy_from(rand_uniform({8}, 0.5, 2, rng));
  PackedVae packed(vae.config(), dtype, device);
  packed.copy_from(vae);
  VaeStream stream(packed, {.height = kHeight, .width = kWidth, .most_latents = 2});
  const Tensor frames = rand_uniform({kFrames, kHeight, kWidth, 3}, -1, 1, rng);
  const Tensor want = vae.encode(frames.unsqueeze(0)), shown = vae.decode(want, true);
  Errors worst{0, 0};
  for (int turn = 0; turn < 2; ++turn) {  // the second after a reset
    Tensors latents, pixels;
    int64_t t = 0;
    for (int64_t n : pieces) {
      latents.push_back(stream.encode(frames.slice(0, t, t + n).contiguous().to(device)));
      t += n;
    }
    t = 0;
    for (const Tensor& z : latents) {
      const Tensor given = want.slice(2, t, t + z.dim(2)).contiguous().to(device);
      pixels.push_back(stream.decode(given, DType::f32));
      t += z.dim(2);
    }
    worst.latents = std::max(worst.latents, relative_error(cat(latents, 2).to(Device::cpu), want));
    worst.pixels = std::max(worst.pixels, relative_error(cat(pixels, 0).to(Device::cpu), shown.squeeze(0)));
    stream.reset();
  }
  return worst;
}

}  // namespace

TEST_CASE("the packed stream gives what the model gives, however it is cut") {
  for (const Border border : {Border::reflect, Border::zeros, Border::replicate})
    for (const std::vector<int64_t>& pieces :
         {std::vector<int64_t>{17}, std::vector<int64_t>{1, 4, 4, 8}, std::vector<int64_t>{9, 8}}) {
      CAPTURE(int(border));
      CAPTURE(pieces.size());
      const Errors e = stream_errors(border, DType::f32, Device::cpu, pieces);
      CHECK(e.latents < 2e-6);
      CHECK(e.pixels < 2e-6);
    }
}

TEST_CASE("frames that complete no latent, and frames of another size, are refused") {
  const PackedVae packed(small_config(Border::reflect), DType::f32, Device::cpu);
  VaeStream stream(packed, {.height = kHeight, .width = kWidth});
  CHECK_THROWS_WITH_AS(stream.encode(zeros({3, kHeight, kWidth, 3})), doctest::Contains("3 frames"), Error);
  CHECK_THROWS_WITH_AS(stream.encode(zeros({1, kHeight, kWidth + 2, 3})), doctest::Contains("34"), Error);
  CHECK_THROWS_AS(VaeStream(packed, {.height = 50, .width = kWidth}), Error);
}

TEST_CASE("the stream on the GPU, in bf16") {
  if (!cuda_available()) {
    MESSAGE("skipped: no GPU");
    return;
  }
  for (const Border border : {Border::reflect, Border::zeros, Border::replicate}) {
    const Errors e = stream_errors(border, DType::bf16, Device::cuda, {1, 8, 8});
    // Some thirty convolutions deep, each of which rounds its result to 2^-9.
    CHECK(e.latents < 3e-2);
    CHECK(e.pixels < 3e-2);
  }
}
