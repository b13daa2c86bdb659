// The fast stream against the plain transformer, in f32 on the CPU.
#include "dit_stream_fixtures.h"

using namespace rivulet;

TEST_CASE("the fast stream is the plain transformer, whatever the window and the last block") {
  struct Case {
    std::vector<int64_t> softmax_blocks;
    int64_t first, cached;
    bool sink;
  };
  const Case cases[] = {{{1, 3}, 5, 2, true}, {{1}, 2, 3, true}, {{3}, 3, 2, false}, {{0, 2}, 4, 1, true}};
  for (const Case& k : cases) {
    CAPTURE(k.first);
    DitConfig config = small(48, k.softmax_blocks);
    config.cached_chunks = k.cached;
    config.sink = k.sink;
    Dit dit = random_dit(config);
    const auto bounds = bounds_of(config, k.first, 5);
    const Clip in = clip(config, bounds.back());
    FusedDit fused(config, DType::f32, Device::cpu);
    fused.copy_from(dit);
    DitStream stream(fused, options(k.first));
    stream.set_text(in.text, in.mask);
    StreamState state;
    const Tensors want = plain(dit, in, bounds, state);
    CHECK(worst_error(fast(stream, in, bounds), want) < 5e-6);
    CHECK(state_error(stream.state(), state) < 5e-6);
    stream.reset();
    CHECK(worst_error(fast(stream, in, bounds), want) < 5e-6);
  }
}

TEST_CASE("a saved state goes on where it was saved, also on the plain transformer") {
  const DitConfig config = small(48, {1, 3});
  Dit dit = random_dit(config);
  const auto bounds = bounds_of(config, 5, 4);
  const Clip in = clip(config, bounds.back());
  FusedDit fused(config, DType::f32, Device::cpu);
  fused.copy_from(dit);
  DitStream stream(fused, options(5)), other(fused, options(5));
  stream.set_text(in.text, in.mask);
  other.set_text(in.text, in.mask);
  const std::vector<int64_t> half(bounds.begin(), bounds.begin() + 3);
  fast(stream, in, half);
  const StreamState saved = stream.state();
  other.set_state(saved);
  const Tensors rest = fast(stream, in, bounds, 2);
  CHECK(worst_error(fast(other, in, bounds, 2), rest) == 0);
  const NoGrad off;
  const Tensor x = cat({in.noise, in.source}, 1).slice(2, bounds[2], bounds[3]);
  const TextContext text = dit.text_context(in.text, in.mask);
  CHECK(worst_error({rest[0]}, {dit(x, full({1}, 961), text, &saved)}) < 5e-6);
}

TEST_CASE(
    "the parameters of a fused transformer are views: it computes as the plain one, and nothing twice") {
  const DitConfig config = small(48, {1, 3});
  Dit dit = random_dit(config);
  const Clip in = clip(config, 3);
  const int64_t before = cpu_memory().now;
  FusedDit fused(config, DType::f32, Device::cpu);
  // The zero biases of q, k and v are added, and in two blocks the rows that fill up their rates to 64; the
  // unread taps of the two others are gone.
  const int64_t C = config.width, taps = 2 * 2 * 2 * C * C;
  const int64_t zero = config.depth * 3 * C + 2 * (64 - 2 * config.heads) * (C + 1);
  CHECK(cpu_memory().now - before == 4 * (count_elements(named_tensors(dit)) - taps + zero));
  fused.copy_from(dit);
  const NoGrad off;
  const Tensor x = cat({in.noise, in.source}, 1);
  const auto run = [&](const Dit& d) { return d(x, full({1}, 700), d.text_context(in.text, in.mask)); };
  CHECK(relative_error(run(fused.dit), run(dit)) < 1e-6);
}

TEST_CASE("a stream refuses what does not fit it") {
  DitConfig config = small(48, {1});
  FusedDit fused(config, DType::f32, Device::cpu);
  DitStream stream(fused, options(5));
  CHECK_THROWS_WITH_AS(stream.begin_chunk(zeros({1, 8, 5, kHeight, kWidth})), doctest::Contains("text"),
                       Error);
  stream.set_text(zeros({1, 2, 16}), ones({1, 2}, DType::u8));
  CHECK_THROWS_WITH_AS(stream.begin_chunk(zeros({1, 8, 3, kHeight, kWidth})), doctest::Contains("source"),
                       Error);
  CHECK_THROWS_WITH_AS(stream.end_chunk(zeros({1, 8, 5, kHeight, kWidth})), doctest::Contains("outside"),
                       Error);
  config.cached_chunks = -1;
  FusedDit endless(config, DType::f32, Device::cpu);
  CHECK_THROWS_WITH_AS(DitStream(endless, options(5)), doctest::Contains("without end"), Error);
}
