// Running the student over clips, the reverse pass and the window of the losses: what is asked, in which
// order.
#include "train/rollout.h"

#include <doctest/doctest.h>

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "tests/recipe_fixtures.h"
#include "train/clips.h"
#include "train/dmd.h"

using namespace rivulet;

namespace {

constexpr double kFloor = 0.0079444;  // of the noise in written memory

// Velocity of a network whose prediction is w times the source.
Recorder scaled_source(const Tensor& w) {
  return Recorder([w](const NetCall& c) { return (c.x - c.source * w) / over_latents(c.sigma); });
}

RolloutPlan plan_of(std::vector<int64_t> chunks, int64_t exit, bool graded) {
  return {.chunks = std::move(chunks), .exit = exit, .graded = graded};
}

double mean_square(const Tensor& x) { return mean(square(x.detach())).item(); }

}  // namespace

TEST_CASE(
    "a clip: steps up to one exit for all chunks, fresh noise between, the prediction into the memory") {
  Rng rng{1};
  Tensor w = full({1, 1, 1, 1, 1}, 0.7);
  w.set_requires_grad();
  const Tensor source = randn({2, 3, 11, 8, 8}, rng);
  const TextContext text{};
  for (int64_t exit = 0; exit < 4; ++exit) {
    CAPTURE(exit);
    Recorder student = scaled_source(w);
    const ClipRun run = roll_out(student.net(), source, text, {}, plan_of({5, 3, 3}, exit, true), rng);
    CHECK(run.memory.chunk == 3);
    CHECK(run.memory.frames == 11);
    CHECK(largest_difference(run.x0, source * 0.7) < 1e-5);
    REQUIRE(int64_t(student.calls.size()) == 3 * (exit + 2));
    const double told[] = {1000, 961, 893, 743};
    const int64_t begin[] = {0, 5, 8}, end[] = {5, 8, 11};
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t k = 0; k <= exit + 1; ++k) {
        const Asked& a = student.calls[size_t(c * (exit + 2) + k)];
        const Tensor s = source.slice(2, begin[c], end[c]);
        CHECK(largest_difference(a.source, s) == 0);
        CHECK(a.past_chunk == c);
        CHECK(a.past_frames == begin[c]);
        CHECK(a.writes == (k > exit));
        CHECK(a.graded == (k == exit));
        const double t = k > exit ? 0 : told[k], sigma = a.sigma.to_vector()[0];
        CHECK(a.t.to_vector()[0] == t);
        CHECK(std::abs(sigma - (k > exit ? kFloor : table_level(t))) < 1e-5);
        // What is asked is the last prediction with noise of exactly this level, never an Euler state.
        const Tensor noise = a.x - s * (0.7 * (1 - sigma));
        CHECK(mean_square(noise) == doctest::Approx(sigma * sigma).epsilon(0.1));
        if (k > 0) {
          const Asked& before = student.calls[size_t(c * (exit + 2) + k - 1)];
          const Tensor old = before.x - s * (0.7 * (1 - before.sigma.to_vector()[0]));
          CHECK(std::abs(mean(noise * old).item()) < 0.1 * sigma);
        }
      }
    backward(mse_loss(run.x0, source * 0.5));
    CHECK(w.grad().defined());
    w.set_grad({});
  }
}

TEST_CASE("parameters get their gradient from one call per chunk; upstream of the exit there is none") {
  Rng rng{2};
  const Tensor source = randn({1, 2, 11, 4, 4}, rng);
  const TextContext text{};
  Tensors weights;  // one per call
  Recorder student([&](const NetCall& c) {
    weights.push_back(full({1, 1, 1, 1, 1}, 0.7).set_requires_grad());
    return (c.x - c.source * weights.back()) / over_latents(c.sigma);
  });
  const ClipRun run = roll_out(student.net(), source, text, {}, plan_of({5, 3, 3}, 2, true), rng);
  Window window;
  backward(dmd_loss(run.x0, run.x0.detach(), ones({11})));
  int64_t reached = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    CHECK(weights[i].grad().defined() == (i % 4 == 2));
    reached += weights[i].grad().defined();
  }
  CHECK(weights.size() == 12);
  CHECK(reached == 3);
  Recorder again = scaled_source(full({1}, 0.7));
  const ClipRun ungraded = roll_out(again.net(), source, text, {}, plan_of({5, 3, 3}, 2, false), rng);
  for (const Asked& a : again.calls) CHECK_FALSE(a.graded);
  CHECK_FALSE(ungraded.x0.requires_grad());
}

TEST_CASE("the reverse pass: the source noised, beside the edit, from its own memory, once per new frame") {
  Rng rng{3};
  Tensor w = full({1, 1, 1, 1, 1}, 0.6), edit = randn({2, 3, 9, 8, 8}, rng);
  w.set_requires_grad();
  edit.set_requires_grad();
  const Tensor source = randn({2, 3, 9, 8, 8}, rng);
  const TextContext reverse{};
  StreamState memory;
  memory.chunk = 3;
  memory.frames = 11;
  for (int64_t exit = 0; exit < 4; ++exit)
    for (bool graded : {true, false}) {
      Recorder student = scaled_source(w);
      const ReverseRun run =
          run_reverse(student.net(), edit, source, reverse, memory, plan_of({3, 3, 3}, exit, graded), rng);
      CHECK(memory.frames == 11);
      CHECK(run.memory.frames == 20);
      REQUIRE(student.calls.size() == 6);
      const double t = default_steps(4)[size_t(exit)], sigma = table_level(t);
      double total = 0;
      for (int64_t c = 0; c < 3; ++c) {
        const Tensor s = source.slice(2, 3 * c, 3 * c + 3), e = edit.detach().slice(2, 3 * c, 3 * c + 3);
        const Asked &a = student.calls[size_t(2 * c)], &write = student.calls[size_t(2 * c) + 1];
        CHECK(a.graded == graded);
        CHECK_FALSE(a.writes);
        CHECK(a.t.to_vector()[0] == t);
        CHECK(a.text == &reverse);
        CHECK(a.past_frames == 11 + 3 * c);
        CHECK(largest_difference(a.source, e) == 0);
        const Tensor eps = (a.x - s * (1 - sigma)) / sigma;
        CHECK(mean_square(eps) == doctest::Approx(1).epsilon(0.1));
        total += mean_square((a.x - e * 0.6) / sigma - (eps - s)) / 3;
        // Its own prediction is written, not the true source.
        CHECK(write.writes);
        CHECK_FALSE(write.graded);
        CHECK(write.t.to_vector()[0] == 0);
        CHECK(largest_difference(write.source, e) == 0);
        CHECK(mean_square(write.x - e * (0.6 * (1 - kFloor))) ==
              doctest::Approx(kFloor * kFloor).epsilon(0.1));
      }
      CHECK(run.loss.item() == doctest::Approx(total).epsilon(1e-4));
      CHECK(run.loss.requires_grad() == graded);
      if (!graded) continue;
      backward(run.loss);
      CHECK(w.grad().defined());
      CHECK_FALSE(edit.grad().defined());
      w.set_grad({});
    }
}

TEST_CASE("clips of a stream: 11 frames, then 9 new ones each, as long as they fit") {
  const ClipRules rules;
  const auto frames = [&](int64_t length) {
    std::vector<int64_t> list;
    for (const Clip& c : clips_of(length, rules)) list.push_back(c.frames);
    return list;
  };
  CHECK(frames(11) == std::vector<int64_t>{11});
  CHECK(frames(19) == std::vector<int64_t>{11});
  CHECK(frames(56) == std::vector<int64_t>{11, 9, 9, 9, 9, 9});
  const std::vector<Clip> longest = clips_of(122, rules);
  CHECK(longest.size() == 13);
  CHECK(longest.back().start + longest.back().frames == 119);
  int64_t chunks = 0;
  for (const Clip& c : longest) {
    CHECK(c.first_chunk == chunks);
    CHECK(c.first_chunk == c.start / 3);
    CHECK(c.chunks == (c.start == 0 ? std::vector<int64_t>{5, 3, 3} : std::vector<int64_t>{3, 3, 3}));
    chunks += int64_t(c.chunks.size());
  }
  CHECK(split_clip(56, 3)[0] == 5);
  CHECK(split_clip(122, 3)[0] == 5);
  CHECK_THROWS_WITH_AS(clips_of(10, rules), doctest::Contains("shorter than a clip"), Error);
}

TEST_CASE(
    "a window after the first: its first latent encoded anew, two frames known, in latents and source") {
  Rng rng{4};
  const ClipRules rules;
  const Tensor stream = randn({2, 3, 29, 2, 2}, rng), source = randn({2, 3, 29, 2, 2}, rng);
  Tensors asked;  // what was decoded
  const LastPicture picture = [&](const Tensor& latents) {
    asked.push_back(latents);
    return latents.slice(2, latents.dim(2) - 1, latents.dim(2)) * 10.0;
  };
  ClipHistory history;
  const auto part = [](const Tensor& x, int64_t a, int64_t b) { return x.slice(2, a, b); };
  const Window first = next_window(part(stream, 0, 11), part(source, 0, 11), rules, history, picture);
  CHECK(asked.empty());
  CHECK(largest_difference(first.latents, part(stream, 0, 11)) == 0);
  CHECK(first.mask.to_vector() == std::vector<double>(11, 1));
  for (int64_t at : {11, 20}) {
    asked.clear();
    Tensor fresh = part(stream, at, at + 9).contiguous();
    fresh.set_requires_grad();
    const Window w = next_window(fresh, part(source, at, at + 9), rules, history, picture);
    // The ten latents before the last known one, generated ones and true ones alike.
    REQUIRE(asked.size() == 2);
    CHECK(largest_difference(asked[0], part(stream, at - 11, at - 1)) == 0);
    CHECK(largest_difference(asked[1], part(source, at - 11, at - 1)) == 0);
    for (const auto& [window, whole] : {std::pair{w.latents, stream}, std::pair{w.source, source}}) {
      CHECK(window.dim(2) == 11);
      CHECK(largest_difference(part(window, 0, 1), part(whole, at - 2, at - 1) * 10.0) < 1e-5);
      CHECK(largest_difference(part(window, 1, 11), part(whole, at - 1, at + 9)) == 0);
    }
    CHECK(w.mask.to_vector() == std::vector<double>{0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1});
    // Kept for the next clip as generated, not as encoded anew.
    CHECK(largest_difference(history.latents, part(stream, at - 2, at + 9)) == 0);
    backward(dmd_loss(w.latents, ones(w.latents.shape()), w.mask));
    CHECK(largest_difference(fresh.grad(), full(fresh.shape(), 1 / double(fresh.numel()))) < 1e-7);
  }
  CHECK_THROWS_WITH_AS(next_window(part(stream, 0, 11), part(source, 0, 11), rules, history, picture),
                       doctest::Contains("11 new frames"), Error);
}
