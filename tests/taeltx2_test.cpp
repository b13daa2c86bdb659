// taeltx_2 for any weights, and which frames belong to which latent.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>

#include "models/golden.h"
#include "models/taeltx2/taeltx2.h"
#include "ops/shape.h"
#include "tests/op_fixtures.h"

using namespace rivulet;

namespace {

TinyVae small_vae() {
  TinyVae vae({.latent_channels = 4, .encoder_width = 4, .decoder_widths = {8, 6, 4, 4}});
  Rng rng{4};
  const NoGrad off;
  for_each_tensor(vae, [&](const std::string&, Tensor& t) {
    t.fill(0);
    t.add_in_place(randn(t.shape(), rng),
                   t.dims() == 1 ? 0.1 : 1.4 / std::sqrt(double(t.numel() / t.dim(0))));
  });
  return vae;
}

// First and last place along `dim` where a and b differ.
std::pair<int64_t, int64_t> changed(const Tensor& a, const Tensor& b, int dim) {
  int64_t first = -1, last = -1;
  for (int64_t i = 0; i < a.dim(dim); ++i)
    if (a.select(dim, i).to_vector() != b.select(dim, i).to_vector()) {
      if (first < 0) first = i;
      last = i;
    }
  return {first, last};
}

}  // namespace

TEST_CASE("taeltx2: streams cut anywhere equal the whole clip") {
  const NoGrad off;
  const TinyVae vae = small_vae();
  Rng rng{2};
  const Tensor frames = with_last_repeated(rand_uniform({1, 17, 32, 64, 3}, 0, 1, rng), 8);
  REQUIRE(frames.dim(1) == 24);
  const Tensor z = vae.encode(frames), clip = vae.decode(z);
  REQUIRE(z.shape() == Shape{1, 4, 3, 1, 2});
  REQUIRE(clip.shape() == Shape{1, 17, 32, 64, 3});
  for (const std::vector<int64_t>& cuts :
       std::vector<std::vector<int64_t>>{{8, 8, 8}, {1, 7, 5, 11}, {3, 2, 6, 9, 4}, {23, 1}}) {
    VideoState state;
    Tensors out;
    int64_t at = 0;
    for (int64_t n : cuts) {
      if (const Tensor y = vae.encode(frames.slice(1, at, at + n), state)) out.push_back(y);
      at += n;
    }
    CHECK(relative_error(cat(out, 2), z) < 1e-6);
  }
  VideoState state;
  const Tensor first = vae.decode(z.slice(2, 0, 1), state), rest = vae.decode(z.slice(2, 1, 3), state);
  CHECK(first.dim(1) == 1);
  CHECK(relative_error(cat({first, rest}, 1), clip) < 1e-6);
}

TEST_CASE("taeltx2: latent j reads frames up to 8 j + 7 and shows from frame 8 j - 7 on") {
  const NoGrad off;
  const TinyVae vae = small_vae();
  Rng rng{3};
  const Tensor frames = rand_uniform({1, 24, 32, 32, 3}, 0, 1, rng), z = vae.encode(frames);
  for (const int64_t t : {7, 8, 15, 16}) {
    Tensor other = frames.clone();
    other.slice(1, t, t + 1).fill(0.9);
    CHECK(changed(vae.encode(other), z, 2).first == t / 8);
  }
  const Tensor clip = vae.decode(z);
  Tensor other = z.clone();
  other.slice(2, 1, 2).fill(0.7);
  CHECK(changed(vae.decode(other), clip, 1).first == 1);
  other = z.clone();
  other.slice(2, 2, 3).fill(0.7);
  CHECK(changed(vae.decode(other), clip, 1).first == 9);
}

TEST_CASE("taeltx2: no other split of the padding than all behind gives the reference's latents") {
  const char* const folder = std::getenv("RIVULET_FULL_GOLDEN");
  if (folder == nullptr) {
    std::printf("skipped: RIVULET_FULL_GOLDEN does not name the folder of all golden files\n");
    return;
  }
  const NoGrad off;
  const SafeTensors file(std::string(folder) + "/taeltx2_a.safetensors");
  TinyVae vae({.latent_channels = 8, .encoder_width = 8, .decoder_widths = {32, 16, 8, 8}});
  load_tensors(named_tensors(vae), file, "weights.");
  const Tensor video = file.get("in.video").permute({0, 1, 3, 4, 2}), want = file.get("enc").transpose(1, 2);
  REQUIRE(video.dim(1) == 25);
  const auto copies = [&](int64_t frame, int64_t n) {
    Shape shape = video.shape();
    shape[1] = n;
    return video.slice(1, frame, frame + 1).expand(shape);
  };
  for (int64_t front = 0; front <= 7; ++front) {
    Tensors parts;
    if (front > 0) parts.push_back(copies(0, front));
    parts.push_back(video);
    if (front < 7) parts.push_back(copies(24, 7 - front));
    const double error = relative_error(vae.encode(cat(parts, 1)), want);
    CAPTURE(front);
    if (front == 0)
      CHECK(error < 1e-5);
    else
      CHECK(error > 0.1);
  }
}
