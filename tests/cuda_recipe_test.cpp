// Training on a GPU: self-forcing that stops and resumes there, and its losses beside those of the CPU.
#include <doctest/doctest.h>

#include <cmath>

#include "tensor/cuda.h"
#include "tests/fixtures.h"
#include "tests/recipe_fixtures.h"
#include "train/distill_trainer.h"

using namespace rivulet;

namespace {

EditModelConfig small_config() {
  EditModelConfig c = tiny_latent_config();
  c.dit.width = 64;  // heads of 32 channels: those that the bf16 kernels take
  c.prediction = "source_residual";
  return c;
}

Examples random_streams() {
  return [](int64_t index) {
    Rng rng = Rng{77}.fork(uint64_t(index));
    return Example{randn({4, 29, 4, 6}, rng), {}, {}, index % 2 ? "make red" : "make blue", "keep red"};
  };
}

struct Run {
  EditModel student, real, fake;
  LatentBatches data;
  SelfForcingOptions options;
  std::unique_ptr<SelfForcing> stage;
  std::unique_ptr<DistillTrainer> trainer;
  std::atomic<bool> stop{false};

  Run(const std::string& dir, DType dtype, Device device)
      : student(small_config(), device),
        real(small_config(), device),
        fake(small_config(), device),
        data(random_streams(), identity_space(device), 2, 2) {
    options.reverse = "paper";
    options.critic_lr = 1e-3;
    EditModel cpu(small_config());
    fill_random(cpu, 1);
    for (EditModel* m : {&student, &real, &fake}) {
      m->copy_from(cpu);
      prepare(*m, {dtype, true});
    }
    stage = std::make_unique<SelfForcing>(role_of(student), role_of(real), role_of(fake), options, data);
    const TrainConfig config = train_config({{"task", "self_forcing"},
                                             {"steps", 6},
                                             {"seed", 5},
                                             {"optimizer", {{"lr", 1e-3}}},
                                             {"model", Json::object()},
                                             {"output", {{"dir", dir}}}},
                                            "test");
    trainer = std::make_unique<DistillTrainer>(config, options, *stage, named_tensors(student),
                                               named_tensors(fake));
  }
  std::vector<double> values() {
    std::vector<double> all;
    for (const NamedTensors& list : {trainer->student_values(), trainer->fake_values()})
      for (const auto& [name, t] : list)
        for (double v : t.to(Device::cpu).to_vector()) all.push_back(v);
    return all;
  }
};

std::vector<double> losses(const std::string& dir) {
  std::vector<double> all;
  std::istringstream text(read_file(dir + "/metrics.jsonl"));
  for (std::string line; std::getline(text, line);) {
    const Json j = Json::parse(line);
    all.push_back(j["loss"]);
    if (j.contains("dmd")) all.push_back(j["dmd"]), all.push_back(j["reverse"]);
  }
  return all;
}

}  // namespace

TEST_CASE("on a GPU self-forcing follows the CPU, and resumes with the same bits") {
  if (!cuda_available()) {
    MESSAGE("skipped: no GPU");
    return;
  }
  const TempDir on_cpu;
  Run reference(on_cpu.path, DType::f32, Device::cpu);
  reference.trainer->run();
  const std::vector<double> want = losses(on_cpu.path);
  for (DType dtype : {DType::f32, DType::bf16}) {
    CAPTURE(int(dtype));
    const TempDir whole, halves;
    Run one(whole.path, dtype, Device::cuda);
    one.trainer->run();
    const std::vector<double> got = losses(whole.path);
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      CHECK(got[i] == doctest::Approx(want[i]).epsilon(dtype == DType::f32 ? 1e-3 : 0.05));
    }
    {
      Run first(halves.path, dtype, Device::cuda);
      first.trainer->on_step([&, calls = 0](const NamedTensors&) mutable { first.stop = ++calls == 4; });
      CHECK_FALSE(first.trainer->run(nullptr, &first.stop));
    }
    Run rest(halves.path, dtype, Device::cuda);
    REQUIRE(rest.trainer->resume_latest());
    CHECK(rest.trainer->steps_done() == 3);
    CHECK(rest.trainer->run());
    CHECK(rest.values() == one.values());
  }
}
