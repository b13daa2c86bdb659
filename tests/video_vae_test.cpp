// The video autoencoders for any weights: streams cut anywhere, borders, block orders, names and sizes.
// Parity with the reference is in golden_test and `rivulet selftest`.
#include <doctest/doctest.h>

#include "models/golden.h"
#include "models/ltx2_vae/vae.h"
#include "ops/elementwise.h"
#include "ops/shape.h"
#include "tests/op_fixtures.h"

using namespace rivulet;

namespace {

// Every kind of sampler of the released model, two latents wide.
VideoVaeConfig small_config() {
  VideoVaeConfig c;
  c.latent_channels = 4;
  c.patch = 2;
  c.encoder_width = 4;
  c.encoder_mid_layers = 1;
  c.encoder = {{1, {1, 2, 2}, 4}, {1, {2, 1, 1}, 8}, {1, {2, 2, 2}, 16}};
  c.decoder_width = 16;
  c.decoder_mid_layers = 1;
  c.decoder = {{1, {2, 2, 2}, 8}, {1, {2, 2, 2}, 4}};
  return c;
}

VideoVae random_vae(uint64_t seed = 3) {
  VideoVae vae(small_config());
  Rng rng{seed};
  vae.initialise(rng);
  const NoGrad off;
  for (const auto& [name, t] : named_tensors(vae))
    if (name.find("latents") == std::string::npos) t.add_in_place(randn(t.shape(), rng), 0.05);
  vae.latents_mean.copy_from(randn({4}, rng));
  vae.latents_std.copy_from(rand_uniform({4}, 0.5, 2, rng));
  return vae;
}

template <class F>
Tensor in_pieces(const Tensor& x, int dim, const std::vector<int64_t>& lengths, int out_dim, F&& f) {
  Tensors out;
  int64_t at = 0;
  for (int64_t n : lengths) {
    if (const Tensor y = f(x.slice(dim, at, at + n))) out.push_back(y);
    at += n;
  }
  REQUIRE(at == x.dim(dim));
  return cat(out, out_dim);
}

}  // namespace

TEST_CASE("convolution borders equal the sum by its definition, with frames on the left and without") {
  Rng rng{7};
  const Tensor x = randn({2, 3, 4, 5, 2}, rng), w = randn({3, 2, 3, 3, 3}, rng), none;
  const Tensors left = {randn({2, 4, 5, 2}, rng), randn({2, 4, 5, 2}, rng)};
  for (const Border space : {Border::zeros, Border::reflect, Border::replicate})
    for (const bool carried : {false, true}) {
      ConvSteps<3> steps(1, 1);
      steps.before[0] = 2;
      steps.after[0] = 0;
      steps.border = {Border::replicate, space, space};
      const Tensor y = conv3d(x, w, none, steps, carried ? left : Tensors{});
      // The same with every border laid out by hand.
      const Tensor first = x.slice(1, 0, 1);
      const Tensor time =
          carried ? cat({left[0].unsqueeze(1), left[1].unsqueeze(1), x}, 1) : cat({first, first, x}, 1);
      const auto edge = [&](const Tensor& t, int dim, bool low) {
        const int64_t n = t.dim(dim), inner = space == Border::reflect ? 1 : 0;
        const Tensor e = t.slice(dim, low ? inner : n - 1 - inner, low ? inner + 1 : n - inner);
        return space == Border::zeros ? zeros_like(e) : e;
      };
      const Tensor tall = cat({edge(time, 2, true), time, edge(time, 2, false)}, 2);
      const Tensor all = cat({edge(tall, 3, true), tall, edge(tall, 3, false)}, 3);
      CHECK(distance(y, conv3d(all, w)) < 1e-6);
      // A weight in the order of memory that the op reads gives the same bits.
      const Tensor packed = channels_last_weight(w.shape(), Device::cpu);
      packed.copy_from(w);
      CHECK(conv3d(x, packed, none, steps, carried ? left : Tensors{}).to_vector() == y.to_vector());
    }
  ConvSteps<3> wide(1, 3);
  wide.before[0] = wide.after[0] = 1;
  wide.border = {Border::zeros, Border::reflect, Border::reflect};
  CHECK(error_of([&] {
          conv3d(x.slice(2, 0, 3), randn({1, 2, 3, 7, 7}, rng), none, wide);
        }).find("mirrored") != std::string::npos);
  CHECK(error_of([&] { conv3d(x, w, none, ConvSteps<3>(1, 1), left); }).find("2 frames on the left") !=
        std::string::npos);
}

TEST_CASE("blocks of pixels go to the channels of the released order") {
  // Pixel values say where they are: frame, row, column, channel.
  const Tensor x({1, 2, 4, 6, 3}, DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] = float(i);
  const Reader in(x), deep(space_to_depth(x, {2, 2, 3}));
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t w = 0; w < 2; ++w)
      for (int64_t c = 0; c < 3; ++c)
        for (int64_t k = 0; k < 12; ++k)
          CHECK(deep({0, 0, h, w, c * 12 + k}) == in({0, k / 6, 2 * h + k / 3 % 2, 3 * w + k % 3, c}));
  CHECK(depth_to_space(space_to_depth(x, {2, 2, 3}), {2, 2, 3}).to_vector() == x.to_vector());
  // Patches of the autoencoder: the column is the slow one.
  VideoVaeConfig c = small_config();
  c.encoder = {{1, {2, 1, 1}, 8}};
  c.decoder = {{1, {2, 1, 1}, 8}};
  const VideoVae vae(c);
  const Reader patches(vae.patchify(x));
  for (int64_t t = 0; t < 2; ++t)
    for (int64_t k = 0; k < 12; ++k)
      CHECK(patches({0, t, 1, 2, k}) == in({0, t, 2 + k % 2, 4 + k / 2 % 2, k / 4}));
  CHECK(vae.unpatchify(vae.patchify(x)).to_vector() == x.to_vector());
}

TEST_CASE("a stream cut anywhere encodes and decodes as the whole clip") {
  const NoGrad off;
  const VideoVae vae = random_vae();
  Rng rng{5};
  const Tensor frames = rand_uniform({2, 13, 16, 24, 3}, -1, 1, rng);
  const Tensor z = vae.encode(frames);
  REQUIRE(z.shape() == Shape{2, 4, 4, 2, 3});
  for (const std::vector<int64_t>& cuts :
       std::vector<std::vector<int64_t>>{{1, 4, 4, 4},
                                         {13},
                                         {5, 8},
                                         {9, 4},
                                         {3, 3, 3, 4},
                                         {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                         {2, 9, 2}}) {
    CAPTURE(cuts);
    VideoState state;
    CHECK(relative_error(in_pieces(frames, 1, cuts, 2, [&](const Tensor& x) { return vae.encode(x, state); }),
                         z) < 1e-6);
  }
  const Tensor latents = randn({1, 4, 6, 3, 2}, rng), whole = vae.decode(latents, true);
  REQUIRE(whole.shape() == Shape{1, 21, 24, 16, 3});
  for (const std::vector<int64_t>& cuts :
       std::vector<std::vector<int64_t>>{{1, 1, 1, 1, 1, 1}, {6}, {3, 3}, {1, 5}, {2, 1, 3}}) {
    CAPTURE(cuts);
    VideoState state;
    CHECK(relative_error(
              in_pieces(latents, 2, cuts, 1, [&](const Tensor& x) { return vae.decode(x, state); }), whole) <
          1e-6);
  }
}

TEST_CASE("frame counts of a stream, forks of it, and calls that fail") {
  const NoGrad off;
  const VideoVae vae = random_vae();
  Rng rng{9};
  const auto frames = [&](int64_t n) { return rand_uniform({1, n, 16, 16, 3}, -1, 1, rng); };
  VideoState state;
  CHECK(vae.encode(frames(1), state).dim(2) == 1);
  CHECK(!vae.encode(frames(3), state).defined());
  const VideoState fork = state;
  const Tensor next = frames(1);
  const Tensor z = vae.encode(next, state);
  CHECK(z.dim(2) == 1);
  VideoState again = fork, other = fork;
  CHECK(vae.encode(next, again).to_vector() == z.to_vector());
  CHECK(vae.encode(frames(1), other).to_vector() != z.to_vector());
  VideoState kept = fork;
  CHECK_THROWS_AS(vae.encode(rand_uniform({1, 1, 16, 32, 3}, -1, 1, rng), kept), Error);
  CHECK(vae.encode(next, kept).to_vector() == z.to_vector());
  CHECK_THROWS_AS(vae.encode(frames(4)), Error);  // not 1 + 4 k
  VideoState decoding;
  CHECK(vae.decode(z, decoding).dim(1) == 1);
  CHECK(vae.decode(z, decoding).dim(1) == 4);
}

TEST_CASE("one latent decodes alike causally and with both sides; more do not") {
  const NoGrad off;
  const VideoVae vae = random_vae();
  Rng rng{6};
  const Tensor z = randn({1, 4, 3, 2, 2}, rng), first = z.slice(2, 0, 1);
  CHECK(relative_error(vae.decode(first, true), vae.decode(first, false)) < 1e-6);
  CHECK(relative_error(vae.decode(z, true), vae.decode(z, false)) > 1e-3);
  // Causal frames do not change with later latents.
  Tensor changed = z.clone();
  changed.slice(2, 2, 3).fill(3);
  const Tensor a = vae.decode(z, true), b = vae.decode(changed, true);
  CHECK(relative_error(b.slice(1, 0, 5), a.slice(1, 0, 5)) < 1e-6);
  CHECK(relative_error(b.slice(1, 5, 9), a.slice(1, 5, 9)) > 1e-3);
}

TEST_CASE("tiled decoding blends three tiles as the closed form says") {
  const NoGrad off;
  VideoVaeConfig c = small_config();
  c.encoder = {{1, {2, 2, 2}, 8}, {1, {2, 1, 1}, 8}, {1, {2, 1, 1}, 16}};
  c.decoder = {{1, {2, 2, 2}, 8}, {1, {2, 1, 1}, 8}, {1, {2, 1, 1}, 8}};
  VideoVae vae(c);
  Rng rng{8};
  vae.initialise(rng);
  const Tensor z = randn({1, 4, 7, 2, 2}, rng), out = decode_tiles(vae, z);
  REQUIRE(out.dim(1) == 8 * 7 - 7);
  const auto tile = [&](int64_t i) {  // after its first frame
    const Tensor d = vae.decode(z.slice(2, i, i + 4), false);
    return d.slice(1, 1, d.dim(1));
  };
  const Tensor d1 = tile(1), d2 = tile(2), d3 = tile(3);
  for (int64_t x = 0; x < 8; ++x) {
    const double s = double(x) / 16;
    const auto frame = [](const Tensor& d, int64_t i) { return d.slice(1, i, i + 1); };
    const Tensor want = s * frame(d3, x) + (1 - s) * double(8 + x) / 16 * frame(d2, 8 + x) +
                        (1 - s) * double(8 - x) / 16 * frame(d1, 16 + x);
    CHECK(relative_error(out.slice(1, 1 + 3 * 8 + x, 2 + 3 * 8 + x), want) < 1e-6);
  }
  // A single latent is one frame, and the same as plain decoding.
  CHECK(relative_error(decode_tiles(vae, z.slice(2, 0, 1)), vae.decode(z.slice(2, 0, 1), false)) == 0);
}

TEST_CASE("names and sizes of the released autoencoder") {
  VideoVae vae(ltx2_vae_config(), Device::meta);
  const NamedTensors tensors = named_tensors(vae);
  CHECK(tensors.size() == 184);
  const auto shape = [&](const std::string& name) {
    for (const auto& [n, t] : tensors)
      if (n == name) return t.shape();
    return Shape{};
  };
  CHECK(shape("encoder.conv_in.conv.weight") == Shape{128, 48, 3, 3, 3});
  CHECK(shape("encoder.down_blocks.0.downsamplers.0.conv.conv.weight") == Shape{64, 128, 3, 3, 3});
  CHECK(shape("encoder.down_blocks.1.resnets.5.conv2.conv.bias") == Shape{256});
  CHECK(shape("encoder.mid_block.resnets.1.conv1.conv.weight") == Shape{2048, 2048, 3, 3, 3});
  CHECK(shape("encoder.conv_out.conv.weight") == Shape{129, 2048, 3, 3, 3});
  CHECK(shape("decoder.up_blocks.0.upsamplers.0.conv.conv.weight") == Shape{4096, 1024, 3, 3, 3});
  CHECK(shape("decoder.up_blocks.2.resnets.4.conv2.conv.weight") == Shape{128, 128, 3, 3, 3});
  CHECK(shape("latents_std") == Shape{128});
  double millions = 0;
  for (const auto& [n, t] : tensors) millions += double(t.numel()) / 1e6;
  CHECK(millions == doctest::Approx(1222.48).epsilon(1e-5));
  CHECK(vae.config().spatial() == 32);
  CHECK(vae.config().temporal() == 8);
  CHECK(vae.config().frames_of(122) == 969);
  const Json noisy = {{"decoder_inject_noise", {false, true}}};
  CHECK(error_of([&] { ltx2_vae_config(noisy, "x.json"); }).find("decoder_inject_noise") !=
        std::string::npos);
}

TEST_CASE("weights and frames in bf16 give what f32 gives, but for rounding") {
  const NoGrad off;
  VideoVae vae = random_vae();
  Rng rng{5};
  const Tensor frames = rand_uniform({1, 9, 16, 24, 3}, -1, 1, rng), z = vae.encode(frames);
  const Tensor decoded = vae.decode(z, true);
  convert(vae, DType::bf16);
  pack_convs(vae);
  VideoState encoding, decoding;
  const Tensor half = frames.to(DType::bf16), z16 = vae.encode(half);
  CHECK(z16.dtype() == DType::bf16);
  CHECK(relative_error(z16, z) < 0.03);
  CHECK(relative_error(
            in_pieces(half, 1, {1, 4, 4}, 2, [&](const Tensor& x) { return vae.encode(x, encoding); }), z16) <
        0.03);
  const Tensor streamed =
      in_pieces(z.to(DType::bf16), 2, {1, 2}, 1, [&](const Tensor& x) { return vae.decode(x, decoding); });
  CHECK(streamed.dtype() == DType::bf16);
  CHECK(relative_error(streamed, decoded) < 0.03);
}
