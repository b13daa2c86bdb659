// What the stages of training rely on in the network itself: memory on and off the tape, blocks run again in
// the backward, the conversion to a stream, ODE initialisation, and the prediction around the source.
#include <doctest/doctest.h>

#include <cmath>

#include "models/flow.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "tests/fixtures.h"
#include "tests/recipe_fixtures.h"
#include "train/ode_init.h"
#include "train/rollout.h"

using namespace rivulet;

namespace {

const std::vector<int64_t> kChunks{5, 3, 3};

struct Clip {
  Tensor x, source, sigma, t;
};

// A clip of 11 latents whose chunks stand at levels of their own.
Clip clip_of(uint64_t seed, int64_t batch = 1) {
  Rng rng{seed};
  const Shape shape{batch, 4, 11, 2, 3};
  Clip c{randn(shape, rng), randn(shape, rng), zeros({batch, 11}), zeros({batch, 11})};
  const double told[] = {743, 0, 961};
  const int64_t end[] = {5, 8, 11};
  for (int64_t f = 0, j = 0; f < 11; ++f) {
    if (f == end[j]) ++j;
    c.sigma.slice(1, f, f + 1).fill(told[j] > 0 ? table_level(told[j]) : 0);
    c.t.slice(1, f, f + 1).fill(told[j]);
  }
  return c;
}

std::vector<double> gradients(EditModel& model) {
  std::vector<double> all;
  for (const auto& [name, t] : named_tensors(model)) {
    const Tensor g = t.grad() ? t.grad() : zeros_like(t);
    for (double v : g.to_vector()) all.push_back(v);
    t.set_grad({});
  }
  return all;
}

double largest(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

}  // namespace

TEST_CASE("a bidirectional editor becomes a stream without a change to what it computes on a clip") {
  EditModel from(tiny_latent_config("bidirectional")), to(tiny_latent_config());
  fill_random(from, 1);
  fill_random(to, 2);
  to.copy_from(from);
  const NoGrad off;
  const Clip c = clip_of(3);
  const auto run = [&](const EditModel& m) {
    return m.velocity(c.x, m.source(c.source), c.sigma, c.t, m.encode({"make red"}));
  };
  CHECK(largest_difference(run(from), run(to)) == 0);
  CHECK(mean(abs(run(to))).item() > 0.1);
  EditModel back(tiny_latent_config("bidirectional"));
  back.copy_from(to);
  CHECK(largest_difference(run(from), run(back)) == 0);
  EditModelConfig other = tiny_latent_config();
  other.vocabulary = Vocabulary({"red"});
  EditModel stranger(other);
  CHECK_THROWS_WITH_AS(to.copy_from(stranger), doctest::Contains("same words"), Error);
}

TEST_CASE("a chunk-causal pass is the stream whose memory was written from the given latents") {
  EditModel model(tiny_latent_config());
  fill_random(model, 4);
  const NoGrad off;
  const Clip c = clip_of(5, 2);
  const TextContext text = model.encode({"make red", "keep blue"});
  const Tensor whole = chunk_causal(net_of(model), c.x, c.source, c.sigma, c.t, text, kChunks);
  StreamState memory;
  int64_t at = 0;
  for (int64_t length : kChunks) {
    const auto part = [&](const Tensor& x, int dim) { return x.slice(dim, at, at + length); };
    const SourceLatents source = model.source(part(c.source, 2));
    const Tensor v = model.velocity(part(c.x, 2), source, part(c.sigma, 1), part(c.t, 1), text, &memory);
    CHECK(largest_difference(v, part(whole, 2)) < 1e-6);
    StreamState next;
    model.velocity(part(c.x, 2), source, part(c.sigma, 1), part(c.t, 1), text, &memory, &next);
    memory = next;
    at += length;
  }
}

TEST_CASE("what chunks see: the first one, the one before, themselves, at their place in the stream") {
  EditModel model(tiny_latent_config());
  fill_random(model, 6);
  const NoGrad off;
  Rng rng{7};
  const TextContext text = model.encode({"make red"});
  const std::vector<std::vector<int64_t>> seen = {{}, {0}, {0, 1}, {0, 2}, {0, 3}};
  StreamState memory;
  for (size_t j = 0; j < seen.size(); ++j) {
    const int64_t frames = j == 0 ? 5 : 3;
    std::vector<int64_t> chunks;
    if (memory.chunk > 0)
      for (const auto& [chunk, kv] : memory.blocks[2].window) {
        chunks.push_back(chunk);
        CHECK(kv.k.dim(1) == (chunk == 0 ? 5 : 3) * 6);
      }
    CHECK(chunks == seen[j]);
    CHECK(memory.frames == (j == 0 ? 0 : 5 + 3 * (int64_t(j) - 1)));
    memory = write_memory(net_of(model), randn({1, 4, frames, 2, 3}, rng), randn({1, 4, frames, 2, 3}, rng),
                          text, memory, 8, rng);
  }
  // Keys are turned by absolute positions: alone, the same chunk has other keys than in its place, the same
  // values.
  const Tensor x = randn({1, 4, 3, 2, 3}, rng), s = randn({1, 4, 3, 2, 3}, rng), t = levels_of(1, 0);
  const auto first_keys = [&](int64_t frames) {
    StreamState past = memory, next;
    past.frames = frames;
    model.velocity(x, model.source(s), t, t, text, &past, &next);
    return next.blocks[0].window.back().second;
  };
  CHECK(largest_difference(first_keys(11).k, first_keys(14).k) > 1e-2);
  CHECK(largest_difference(first_keys(11).v, first_keys(14).v) == 0);
}

TEST_CASE("gradients cross the chunks of an ODE-initialised student, blocks run again or not") {
  EditModel model(tiny_latent_config());
  fill_random(model, 8);
  Clip c = clip_of(9);
  c.x.set_requires_grad();
  set_requires_grad(named_tensors(model), true);
  const Tensor want = clip_of(10).x.slice(2, 8, 11);
  const auto loss = [&] {
    const TextContext text = model.encode({"make red"});
    const Tensor v = chunk_causal(net_of(model), c.x, c.source, c.sigma, c.t, text, kChunks);
    return mse_loss(v.slice(2, 8, 11), want);  // of the last chunk alone
  };
  backward(loss());
  const Tensor through = c.x.grad();
  const std::vector<double> plain = gradients(model);
  CHECK(mean(abs(through.slice(2, 0, 5))).item() > 1e-5);
  CHECK(mean(abs(through.slice(2, 5, 8))).item() > 1e-5);
  // Along the gradient of the first chunk, by central differences.
  const Tensor way = through.slice(2, 0, 5).contiguous();
  const double slope = sum(square(way)).item(), h = 3e-3 / std::sqrt(slope);
  const auto moved = [&](double by) {
    const NoGrad off;
    const Tensor place = c.x.detach().slice(2, 0, 5);
    place.add_in_place(way, by);
    const double value = loss().item();
    place.add_in_place(way, -by);
    return value;
  };
  CHECK((moved(h) - moved(-h)) / (2 * h) == doctest::Approx(slope).epsilon(0.02));
  c.x.set_grad({});
  model.dit.recompute = true;
  backward(loss());
  CHECK(largest_difference(c.x.grad(), through) < 1e-6);
  CHECK(largest(gradients(model), plain) < 1e-6);
}

TEST_CASE(
    "a memory that is written before the backward does not change the gradients of what read the old one") {
  EditModel model(tiny_latent_config());
  fill_random(model, 11);
  set_requires_grad(named_tensors(model), true);
  const Clip c = clip_of(12);
  const auto part = [](const Tensor& x) { return x.slice(2, 5, 8); };
  const Tensor level = levels_of(1, 0.7), told = levels_of(1, 700), zero = levels_of(1, 0);
  const auto gradient = [&](bool recompute, bool write) {
    model.dit.recompute = recompute;
    Rng rng{13};
    const EditNet net = net_of(model);
    const TextContext text = model.encode({"make red"});
    StreamState memory = write_memory(net, c.x.slice(2, 0, 5), c.source.slice(2, 0, 5), text, {}, 8, rng);
    const Tensor v = net({part(c.x), part(c.source), level, told, text, &memory});
    if (write) memory = write_memory(net, part(c.x), part(c.source), text, memory, 8, rng);
    backward(mse_loss(v, part(c.source)));
    return gradients(model);
  };
  const std::vector<double> want = gradient(false, false);
  CHECK(largest(gradient(false, true), want) == 0);
  CHECK(largest(gradient(true, false), want) < 1e-6);
  CHECK(gradient(true, true) == gradient(true, false));
}

TEST_CASE("a rollout and its reverse pass leave the memories of the other alone") {
  EditModel model(tiny_latent_config());
  fill_random(model, 14);
  const Clip c = clip_of(15);
  const EditNet net = net_of(model);
  const NoGrad off;
  const TextContext there = model.encode({"make red"}), back = model.encode({"make blue"});
  Rng rng{16};
  RolloutPlan plan;
  plan.chunks = kChunks;
  const ClipRun run = roll_out(net, c.source, there, {}, plan, rng);
  const StreamState forward = run.memory;
  std::vector<Tensor> before;
  for (const BlockState& b : forward.blocks)
    before.push_back(b.gdn.kv ? b.gdn.kv.clone() : b.window[0].second.k.clone());
  const ReverseRun reverse = run_reverse(net, run.x0, c.source, back, {}, plan, rng);
  for (size_t i = 0; i < before.size(); ++i) {
    const auto held = [&](const BlockState& b) { return b.gdn.kv ? b.gdn.kv : b.window[0].second.k; };
    CHECK(largest_difference(held(forward.blocks[i]), before[i]) == 0);
    CHECK(largest_difference(held(reverse.memory.blocks[i]), before[i]) > 1e-3);
  }
}

TEST_CASE("ODE initialisation: chunks stand at states of their own, clean ones are context and not trained") {
  // State k of frame f holds 100 k + f.
  const std::vector<double> steps{1000, 961, 893, 743};
  const Tensor states({3, 5, 1, 11, 1, 1});
  for (int64_t b = 0; b < 3; ++b)
    for (int64_t k = 0; k < 5; ++k)
      for (int64_t f = 0; f < 11; ++f) states.data<float>()[(b * 5 + k) * 11 + f] = float(100 * k + f);
  Rng rng{17};
  int64_t drawn[5] = {}, differ = 0;
  for (int round = 0; round < 60; ++round) {
    const MixedStates m = mix_states(states, kChunks, steps, 8, rng);
    for (int64_t b = 0; b < 3; ++b) {
      int64_t k_of[11];
      for (int64_t f = 0; f < 11; ++f) {
        const int64_t at = b * 11 + f, k = int64_t(m.x.data<float>()[at]) / 100;
        k_of[f] = k;
        REQUIRE(m.x.data<float>()[at] == float(100 * k + f));
        CHECK(m.clean.to_vector()[size_t(at)] == 400 + f);
        CHECK(m.t.data<float>()[at] == float(k == 4 ? 0 : steps[size_t(k)]));
        CHECK(m.sigma.data<float>()[at] == doctest::Approx(k == 4 ? 0 : table_level(steps[size_t(k)])));
        CHECK(m.trained.data<float>()[at] == float(k != 4));
      }
      for (int64_t f : {1, 2, 3, 4}) CHECK(k_of[f] == k_of[0]);
      differ += k_of[0] != k_of[5] && k_of[5] != k_of[8];
      for (int64_t f : {0, 5, 8}) ++drawn[k_of[f]];
    }
  }
  for (int64_t n : drawn) CHECK(std::abs(double(n) - 108) < 40);
  CHECK(differ > 80);
}

TEST_CASE("the loss of ODE initialisation is of x0, unweighted, and 0 when every chunk is clean") {
  Rng rng{18};
  Tensor w = full({1, 1, 1, 1, 1}, 0.5);
  w.set_requires_grad();
  // Predicts x0 = w source, whatever it is told.
  Recorder net([&](const NetCall& c) {
    const Tensor level = maximum(over_latents(c.sigma), full(Shape{}, 1e-3));
    return (c.x - c.source * w) / level;
  });
  const TextContext text{};
  const Tensor source = randn({1, 2, 11, 2, 2}, rng), clean = randn({1, 2, 11, 2, 2}, rng);
  const Clip c = clip_of(1);
  MixedStates m{randn({1, 2, 11, 2, 2}, rng), clean, c.sigma, c.t, ones({1, 11})};
  m.trained.slice(1, 5, 8).fill(0);
  const Tensor loss = ode_loss(net.net(), m, source, text, kChunks);
  const Tensor error = square(source * 0.5 - clean);
  const double want = (5 * mean(error.slice(2, 0, 5)).item() + 3 * mean(error.slice(2, 8, 11)).item()) / 8;
  CHECK(loss.item() == doctest::Approx(want).epsilon(1e-4));
  CHECK(net.calls.size() == 3);
  for (const Asked& a : net.calls) CHECK(a.writes);
  m.trained.fill(0);
  const Tensor none = ode_loss(net.net(), m, source, text, kChunks);
  CHECK(none.item() == 0);
  backward(none);
  CHECK(w.grad().item() == 0);
}

TEST_CASE("a teacher's trajectory starts at the noise, meets the student's levels and ends at the data") {
  Rng rng{19};
  const Tensor noise = randn({2, 2, 3, 2, 2}, rng), x0 = randn({2, 2, 3, 2, 2}, rng);
  Recorder teacher([&](const NetCall& c) { return (c.x - x0) / over_latents(c.sigma); });
  const TextContext text{}, negative{};
  TeacherOptions options;
  options.solver_steps = 10;
  const Tensor states = teacher_trajectory(teacher.net(), noise, x0, text, negative, options);
  CHECK(states.shape() == Shape{2, 5, 2, 3, 2, 2});
  for (int64_t k = 0; k < 5; ++k) {
    const double s = k < 4 ? table_level(options.steps[size_t(k)]) : 0;
    CHECK(largest_difference(states.select(1, k), noise * s + x0 * (1 - s)) < 1e-4);
  }
  CHECK(teacher.calls.size() == 20);
  CHECK(teacher.calls[0].text == &text);
  CHECK(teacher.calls[1].text == &negative);
  CHECK(teacher.calls[0].past_chunk == -1);
}

TEST_CASE("trajectories come back from their shards") {
  const TempDir dir;
  Rng rng{20};
  const Tensor states = randn({3, 5, 2, 4, 1, 1}, rng), source = randn({3, 2, 4, 1, 1}, rng);
  CHECK_THROWS_WITH_AS(TrajectoryStore::open(dir.path), doctest::Contains("no trajectories"), Error);
  save_shard(dir.path, 0, states, source, {"a", "b", "c"});
  save_shard(dir.path, 1, states.slice(0, 1, 2), source.slice(0, 1, 2), {"d"});
  CHECK(has_shard(dir.path, 1));
  CHECK_FALSE(has_shard(dir.path, 2));
  const TrajectoryStore store = TrajectoryStore::open(dir.path);
  CHECK(store.size() == 4);
  CHECK(store.get(3).instruction == "d");
  CHECK(largest_difference(store.get(3).states, states.slice(0, 1, 2)) < 2e-3);
  CHECK(largest_difference(store.get(2).source, source.slice(0, 2, 3)) < 2e-3);
}

TEST_CASE("around the source: the best linear guess of the velocity, and a unit error left for the network") {
  EditModelConfig config = tiny_latent_config();
  config.prediction = "source_residual";
  config.residual_std = 0.4;
  EditModel model(config);
  Rng rng{21};
  model.initialise(rng);  // its output is zero
  const NoGrad off;
  const TextContext text = model.encode({"make red"});
  const Shape shape{1, 4, 5, 12, 12};
  for (double s : {1.0, 0.743, 0.3, 0.01}) {
    const Tensor source = randn(shape, rng), x0 = source + randn(shape, rng) * 0.4, eps = randn(shape, rng);
    const Tensor sigma = levels_of(1, s), x = noised(x0, eps, sigma);
    const Tensor v = model.velocity(x, model.source(source), sigma, {}, text);
    const Tensor error = eps - x0 - v, known = x - source * (1 - s);
    const double d = s * s + (1 - s) * (1 - s) * 0.16;
    CHECK(mean(square(error)).item() == doctest::Approx(0.16 / d).epsilon(0.05));
    CHECK(std::abs(mean(error * known).item()) < 0.03);
    if (s == 1) CHECK(largest_difference(clean_of(x, v, sigma), source) < 1e-5);
  }
}
