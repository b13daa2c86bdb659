#include "train/trainer.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <thread>

#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/matmul.h"
#include "train/prefetch.h"
#include "train/progress.h"

using namespace rivulet;

namespace {

namespace fs = std::filesystem;

constexpr int64_t kIn = 5, kHidden = 7;

// A folder of its own that is gone afterwards.
struct TempDir {
  fs::path path;
  explicit TempDir(const std::string& name)
      : path(fs::temp_directory_path() / ("rivulet_" + name + std::to_string(getpid()))) {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~TempDir() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

// x -> a tanh(w x), with mean square loss.
struct Net {
  Tensor w, a;
  explicit Net(uint64_t seed = 3) {
    Rng rng{seed};
    w = randn({kHidden, kIn}, rng);
    a = randn({1, kHidden}, rng);
    w.set_requires_grad();
    a.set_requires_grad();
  }
  NamedTensors named() const { return {{"w", w}, {"a", a}}; }
  // Samples k * batch ... of a fixed problem, y = sin(sum of x), plus noise drawn from the step's rng.
  StepFn loss(int64_t batch, int64_t accumulate, double noise) const {
    return [=, net = *this](int64_t step, int64_t micro, Rng& rng) -> StepLoss {
      Tensor x({batch, kIn}), y({batch});
      for (int64_t b = 0; b < batch; ++b) {
        Rng sample{uint64_t((step * accumulate + micro) * batch + b), 0};
        double sum = 0;
        for (int64_t i = 0; i < kIn; ++i) sum += x.data<float>()[b * kIn + i] = float(sample.normal());
        y.data<float>()[b] = float(std::sin(sum) + noise * rng.normal());
      }
      const Tensor out = linear(tanh(linear(x, net.w)), net.a);
      return {mse_loss(out.reshape({batch}), y), {{"rows", double(batch)}}};
    };
  }
};

TrainConfig config_in(const std::string& dir) {
  TrainConfig c = train_config(Json{{"steps", 40},
                                    {"batch", 4},
                                    {"accumulate", 2},
                                    {"seed", 11},
                                    {"model", Json::object()},
                                    {"output", {{"dir", dir}}}},
                               "test");
  c.schedule.lr = 0.02;
  c.schedule.warmup = 5;
  c.schedule.cosine = true;
  c.optimizer.weight_decay = 0.01;
  c.clip_norm = 1;
  c.ema_decay = 0.9;
  c.ema_start = 12;
  c.checkpoint_every = 10;
  return c;
}

// Trains from scratch or from the newest checkpoint to the end; returns the last checkpoint's bytes.
std::string finish(const TrainConfig& c) {
  const Net net;
  Trainer trainer(c, net.named(), net.loss(c.batch, c.accumulate, 0.1));
  trainer.resume_latest();
  CHECK(trainer.run());
  return read_file(checkpoint_path(c.dir, c.steps));
}

std::vector<Json> metrics_of(const std::string& dir) {
  std::vector<Json> lines;
  std::istringstream text(read_file(dir + "/metrics.jsonl"));
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  return lines;
}

}  // namespace

TEST_CASE("training lowers the loss and logs every step as JSON") {
  const TempDir dir("log");
  TrainConfig c = config_in(dir / "run");
  c.steps = c.schedule.steps = 300;
  c.checkpoint_every = 0;
  std::ostringstream shown;
  const Net net;
  Trainer trainer(c, net.named(), net.loss(c.batch, c.accumulate, 0));
  CHECK(trainer.run(&shown));
  const std::vector<Json> lines = metrics_of(c.dir);
  REQUIRE(lines.size() == 300);
  double head = 0, tail = 0;
  for (size_t i = 0; i < 300; ++i) {
    const Json& j = lines[i];
    CHECK(j["step"] == i + 1);
    CHECK(j["lr"].get<double>() == c.schedule.at(int64_t(i)));
    CHECK(j["rows"] == 4.0);
    for (const char* key : {"loss", "grad_norm", "seconds", "samples_per_second"})
      CHECK(j[key].get<double>() > 0);
    if (i < 50) head += j["loss"].get<double>();
    if (i >= 250) tail += j["loss"].get<double>();
  }
  CHECK(tail < 0.5 * head);
  CHECK(trainer.last_loss() == lines.back()["loss"].get<double>());
  CHECK(shown.str().find("train: 300 in ") != std::string::npos);
  CHECK(latest_checkpoint(c.dir) == checkpoint_path(c.dir, 300));
}

TEST_CASE("accumulated micro-batches give the step of one big batch") {
  const TempDir dir("accumulate");
  Tensors results;
  std::vector<double> norms;
  for (const auto& [batch, accumulate] : {std::pair<int64_t, int64_t>{12, 1}, {3, 4}}) {
    TrainConfig c = config_in(dir / std::to_string(batch));
    c.batch = batch;
    c.accumulate = accumulate;
    c.steps = c.schedule.steps = 20;
    const Net net;
    Trainer trainer(c, net.named(), net.loss(batch, accumulate, 0));
    trainer.run();
    results.push_back(net.w.detach());
    norms.push_back(metrics_of(c.dir)[0]["grad_norm"].get<double>());
  }
  CHECK(norms[0] == doctest::Approx(norms[1]).epsilon(1e-5));
  const auto a = results[0].to_vector(), b = results[1].to_vector();
  double moved = 0;
  const auto start = Net().w.to_vector();
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(std::abs(a[i] - b[i]) < 2e-5);
    moved = std::max(moved, std::abs(a[i] - start[i]));
  }
  CHECK(moved > 0.05);
}

TEST_CASE("a checkpoint gives back every tensor, the step, the random state and the config") {
  const TempDir dir("roundtrip");
  const TrainConfig c = config_in(dir / "run");
  const Net net;
  Trainer trainer(c, net.named(), net.loss(c.batch, c.accumulate, 0.1));
  trainer.run();
  const std::string path = checkpoint_path(c.dir, 40);
  const Net other(99);
  AdamW optimizer(other.named(), c.optimizer);
  Ema ema(other.named(), c.ema_decay, c.ema_start);
  const RunState state = load_checkpoint(path, other.named(), optimizer, ema);
  CHECK(state.step == 40);
  CHECK(state.rng.seed == 11);
  CHECK(to_json(train_config(state.config, "stored")) == to_json(c));
  CHECK(optimizer.steps_done() == 40);
  CHECK(other.w.to_vector() == net.w.detach().to_vector());
  CHECK(ema.average()[0].second.to_vector() == trainer.ema().average()[0].second.to_vector());
  save_checkpoint(dir / "again.safetensors", state, other.named(), optimizer, ema);
  CHECK(read_file(dir / "again.safetensors") == read_file(path));
}

TEST_CASE("files that are no fitting checkpoint are refused by name") {
  const TempDir dir("refuse");
  const Net net;
  AdamW optimizer(net.named(), {});
  Ema ema(net.named(), 0.9, 0);
  auto refuses = [&](const std::string& path, const NamedTensors& params, const char* text) {
    CHECK_THROWS_WITH_AS(load_checkpoint(path, params, optimizer, ema), doctest::Contains(text), Error);
  };
  save_safetensors(dir / "plain.safetensors", {{"model.w", net.w}});
  refuses(dir / "plain.safetensors", net.named(), "plain.safetensors: not a training checkpoint");
  save_safetensors(dir / "torn.safetensors", {{"model.w", net.w}},
                   {{"format", "rivulet checkpoint 1"}, {"run", R"({"step": 3})"}});
  refuses(dir / "torn.safetensors", net.named(), "torn.safetensors: the run's state");
  save_checkpoint(dir / "good.safetensors", {5, Rng{1}, {}}, net.named(), optimizer, ema);
  refuses(dir / "good.safetensors", {{"w", net.w}, {"b", zeros({2})}}, "missing model.b");
  refuses(dir / "good.safetensors", {{"w", zeros({2})}}, "model.w has shape");
  refuses(dir / "absent.safetensors", net.named(), "absent.safetensors");
}

TEST_CASE("the newest checkpoints are kept, others and half-written ones go") {
  const TempDir dir("prune");
  TrainConfig c = config_in(dir / "run");
  c.keep = 2;
  fs::create_directories(c.dir);
  const std::string torn = c.dir + "/step_00000007.safetensors.tmp123",
                    stranger = c.dir + "/brook.safetensors";
  write_file(torn, "x");
  write_file(stranger, "x");
  finish(c);
  CHECK_FALSE(fs::exists(checkpoint_path(c.dir, 20)));
  CHECK(fs::exists(checkpoint_path(c.dir, 30)));
  CHECK(fs::exists(checkpoint_path(c.dir, 40)));
  CHECK_FALSE(fs::exists(torn));
  CHECK(fs::exists(stranger));
  CHECK(checkpoint_step(stranger) == -1);
  CHECK_FALSE(latest_checkpoint(dir / "nowhere"));
}

TEST_CASE("a run that is interrupted and resumed ends in the same bytes as one that is not") {
  const TempDir dir("resume");
  // Both runs write to a folder of the same name: the config is part of the file.
  const TrainConfig c = config_in(dir / "run");
  const std::string whole = finish(c);
  fs::remove_all(c.dir);
  for (int64_t pause : {7, 12, 26}) {  // before the average starts, as it starts, after a checkpoint
    const Net net;
    std::atomic<bool> stop = false;
    const StepFn inner = net.loss(c.batch, c.accumulate, 0.1);
    Trainer trainer(c, net.named(), [&](int64_t step, int64_t micro, Rng& rng) {
      if (step + 1 == pause) stop = true;
      return inner(step, micro, rng);
    });
    trainer.resume_latest();
    CHECK_FALSE(trainer.run(nullptr, &stop));
    CHECK(trainer.steps_done() == pause);
    CHECK(latest_checkpoint(c.dir) == checkpoint_path(c.dir, pause));
  }
  CHECK(finish(c) == whole);
  const std::vector<Json> lines = metrics_of(c.dir);
  REQUIRE(lines.size() == 40);
  for (size_t i = 0; i < lines.size(); ++i) CHECK(lines[i]["step"] == i + 1);
}

TEST_CASE("a former run's folder is not overwritten by a fresh run or by an older checkpoint") {
  const TempDir dir("former");
  const TrainConfig c = config_in(dir / "run");
  finish(c);
  const Net net;
  Trainer fresh(c, net.named(), net.loss(c.batch, c.accumulate, 0.1));
  CHECK_THROWS_WITH_AS(fresh.run(), doctest::Contains("is from a former run"), Error);
  Trainer older(c, net.named(), net.loss(c.batch, c.accumulate, 0.1));
  older.resume(checkpoint_path(c.dir, 30));
  CHECK_THROWS_WITH_AS(older.run(), doctest::Contains("step_00000040.safetensors is from a former run"),
                       Error);
}

// Run by the next test in a process of its own, which it kills.
TEST_CASE("child that trains until it is killed" * doctest::skip()) {
  TrainConfig c = config_in(std::getenv("RIVULET_TRAIN_CHILD"));
  const Net net;
  const StepFn inner = net.loss(c.batch, c.accumulate, 0.1);
  Trainer trainer(c, net.named(), [&](int64_t step, int64_t micro, Rng& rng) {
    // Slow enough to be caught between checkpoints.
    std::this_thread::sleep_for(std::chrono::milliseconds(step < 20 ? 1 : 50));
    return inner(step, micro, rng);
  });
  trainer.run();
}

TEST_CASE("a run that is killed and resumed ends in the same bytes as one that is not") {
  const TempDir dir("kill");
  const TrainConfig c = config_in(dir / "run");
  const std::string whole = finish(c);
  fs::remove_all(c.dir);
  const std::string self = fs::read_symlink("/proc/self/exe").string(), env = "RIVULET_TRAIN_CHILD=" + c.dir;
  const char* arguments[] = {self.c_str(), "--no-skip", "--test-case=child that trains*", nullptr};
  const char* environment[] = {env.c_str(), nullptr};
  pid_t child = 0;
  REQUIRE(posix_spawn(&child, self.c_str(), nullptr, nullptr, const_cast<char**>(arguments),
                      const_cast<char**>(environment)) == 0);
  // Kill it once it is past a checkpoint, in the middle of the steps to the next one.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  auto lines = [&] {
    return fs::exists(c.dir + "/metrics.jsonl") ? read_file(c.dir + "/metrics.jsonl") : "";
  };
  while (lines().find("\"step\":23") == std::string::npos && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  kill(child, SIGKILL);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  REQUIRE(latest_checkpoint(c.dir) == checkpoint_path(c.dir, 20));
  CHECK(finish(c) == whole);
  CHECK(metrics_of(c.dir).size() == 40);
}

TEST_CASE("samples are taken on time, under NoGrad, and the average is put in and out around them") {
  const TempDir dir("sample");
  TrainConfig c = config_in(dir / "run");
  c.sample_every = 15;
  const Net net;
  Trainer trainer(c, net.named(), net.loss(c.batch, c.accumulate, 0.1));
  std::vector<int64_t> at;
  trainer.on_sample([&](int64_t steps_done) {
    at.push_back(steps_done);
    CHECK_FALSE(grad_enabled());
    const auto before = net.w.detach().to_vector();
    {
      const EmaScope scope(trainer.ema(), trainer.params());
      CHECK(net.w.detach().to_vector() == trainer.ema().average()[0].second.to_vector());
      CHECK(net.w.detach().to_vector() != before);
    }
    CHECK(net.w.detach().to_vector() == before);
  });
  trainer.run();
  CHECK(at == std::vector<int64_t>{15, 30, 40});
}

TEST_CASE("parameters that the loss cannot reach are noticed") {
  const TempDir dir("reach");
  const TrainConfig c = config_in(dir / "run");
  const Net net, elsewhere;
  Rng rng{1};
  const StepFn loss = net.loss(c.batch, c.accumulate, 0);
  CHECK_THROWS_WITH_AS(Trainer(c, {{"w", randn({2}, rng)}}, loss), doctest::Contains("w does not share"),
                       Error);
  Trainer trainer(c, elsewhere.named(), loss);
  CHECK_THROWS_WITH_AS(trainer.run(), doctest::Contains("no parameter got a gradient"), Error);
}

TEST_CASE("a loss that is not finite ends the run with its step, the last checkpoint stays") {
  const TempDir dir("nan");
  const TrainConfig c = config_in(dir / "run");
  const Net net;
  const StepFn inner = net.loss(c.batch, c.accumulate, 0.1);
  Trainer trainer(c, net.named(), [&](int64_t step, int64_t micro, Rng& rng) {
    if (step == 13) net.a.detach().fill(NAN);
    return inner(step, micro, rng);
  });
  CHECK_THROWS_WITH_AS(trainer.run(), doctest::Contains("the loss of step 13 is nan"), Error);
  CHECK(latest_checkpoint(c.dir) == checkpoint_path(c.dir, 10));
}

TEST_CASE("prefetching keeps the order for any number of workers and delivers an exception in its place") {
  for (int workers : {1, 3}) {
    std::atomic<int64_t> most = 0, running = 0;
    Prefetch<std::vector<int64_t>> samples(
        [&](int64_t i) {
          most = std::max<int64_t>(most, ++running);
          std::this_thread::sleep_for(std::chrono::microseconds(i % 3 * 300));  // finished out of order
          --running;
          check(i != 25, "sample ", i, " is broken");
          return std::vector<int64_t>{i, i * i};
        },
        5, 4, workers);
    for (int64_t i = 5; i < 40; ++i) {
      if (i == 25)
        CHECK_THROWS_WITH_AS(samples.next(), "sample 25 is broken", Error);
      else
        CHECK(samples.next() == std::vector<int64_t>{i, i * i});
    }
    CHECK(most <= workers);
  }
  std::atomic<int64_t> made = 0;
  {
    Prefetch<int64_t> few([&](int64_t i) { return ++made, i; }, 0, 3, 2);
    CHECK(few.next() == 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  CHECK(made <= 4);  // one taken and three ahead
}

TEST_CASE("progress writes plain lines to a log and one at the end") {
  CHECK(format_duration(59.6) == "1:00");
  CHECK(format_duration(3 * 3600 + 62) == "3:01:02");
  CHECK(format_duration(-1) == "0:00");
  std::ostringstream out;
  {
    Progress progress("edit", 10, out);
    progress.start_at(4);
    progress.update(5, "too soon to be worth a line");
    CHECK(out.str().empty());
    progress.update(10);
    progress.finish("5 fps");
    progress.finish("again");
  }
  CHECK(out.str().starts_with("edit: 10 in 0:00 ("));
  CHECK(out.str().ends_with("), 5 fps\n"));
  const std::string text = out.str();
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
}
