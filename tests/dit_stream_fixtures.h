// What the tests of the fast stream share: a small transformer, a clip, and both ways to run it.
#pragma once

#include <doctest/doctest.h>

#include "models/golden.h"
#include "models/sana_streaming/dit_stream.h"
#include "ops/shape.h"

namespace rivulet {

constexpr int64_t kHeight = 4, kWidth = 6;

inline DitConfig small(int64_t width, std::vector<int64_t> softmax_blocks) {
  DitConfig c;
  c.depth = 4;
  c.width = width;
  c.heads = 2;
  c.softmax_blocks = std::move(softmax_blocks);
  c.latent_channels = 8;
  c.caption_channels = 16;
  return c;
}

inline Dit random_dit(const DitConfig& config) {
  Dit dit(config);
  Rng rng{11};
  dit.initialise(rng);
  const NoGrad off;
  for (const auto& [name, t] : named_tensors(dit)) t.add_in_place(randn(t.shape(), rng), 0.1);
  return dit;
}

struct Clip {
  Tensor noise, source, text, mask;
};
inline Clip clip(const DitConfig& c, int64_t frames) {
  Rng rng{5};
  Clip out{randn({1, c.latent_channels, frames, kHeight, kWidth}, rng),
           randn({1, c.latent_channels, frames, kHeight, kWidth}, rng),
           randn({1, 6, c.caption_channels}, rng), ones({1, 6}, DType::u8)};
  out.mask.slice(1, 4, 6).fill(0);
  return out;
}

inline std::vector<int64_t> bounds_of(const DitConfig& c, int64_t first, int64_t chunks) {
  std::vector<int64_t> bounds = {0};
  for (int64_t i = 0; i < chunks; ++i) bounds.push_back(bounds.back() + (i == 0 ? first : c.chunk_frames));
  return bounds;
}

// Every output of the denoising passes at 961 and 743; the cache pass gets the noise as its clean latents.
inline Tensors plain(const Dit& dit, const Clip& in, const std::vector<int64_t>& bounds, StreamState& state) {
  const NoGrad off;
  const TextContext text = dit.text_context(in.text, in.mask);
  Tensors out;
  for (size_t c = 0; c + 1 < bounds.size(); ++c) {
    const Tensor x = cat({in.noise, in.source}, 1).slice(2, bounds[c], bounds[c + 1]);
    for (double t : {961.0, 743.0}) out.push_back(dit(x, full({1}, t), text, &state));
    StreamState next;
    dit(x, zeros({1}), text, &state, &next);
    state = next;
  }
  return out;
}

inline Tensors fast(DitStream& stream, const Clip& in, const std::vector<int64_t>& bounds, size_t from = 0) {
  Tensors out;
  for (size_t c = from; c + 1 < bounds.size(); ++c) {
    const auto chunk = [&](const Tensor& x) { return x.slice(2, bounds[c], bounds[c + 1]); };
    stream.begin_chunk(chunk(in.source));
    for (size_t step : {0, 1})
      out.push_back(stream.velocity(chunk(in.noise), step).to(Device::cpu).to(DType::f32).clone());
    stream.end_chunk(chunk(in.noise));
  }
  return out;
}

inline DitStream::Options options(int64_t first) {
  return {.height = kHeight, .width = kWidth, .first_frames = first, .steps = {961, 743}};
}

inline double worst_error(const Tensors& ours, const Tensors& theirs) {
  REQUIRE(ours.size() == theirs.size());
  double worst = 0;
  for (size_t i = 0; i < ours.size(); ++i) worst = std::max(worst, relative_error(ours[i], theirs[i]));
  return worst;
}

inline double state_error(const StreamState& ours, const StreamState& theirs) {
  CHECK(ours.chunk == theirs.chunk);
  CHECK(ours.frames == theirs.frames);
  REQUIRE(ours.blocks.size() == theirs.blocks.size());
  double worst = 0;
  const auto compare = [&](const Tensor& a, const Tensor& b) {
    worst = std::max(worst, relative_error(a.to(Device::cpu).to(DType::f32), b));
  };
  for (size_t i = 0; i < ours.blocks.size(); ++i) {
    const BlockState &a = ours.blocks[i], &b = theirs.blocks[i];
    compare(a.conv_tail, b.conv_tail);
    if (b.gdn.kv) compare(a.gdn.kv, b.gdn.kv), compare(a.gdn.z, b.gdn.z);
    REQUIRE(a.window.size() == b.window.size());
    for (size_t w = 0; w < b.window.size(); ++w) {
      CHECK(a.window[w].first == b.window[w].first);
      compare(a.window[w].second.k, b.window[w].second.k);
      compare(a.window[w].second.v, b.window[w].second.v);
    }
  }
  return worst;
}

}  // namespace rivulet
