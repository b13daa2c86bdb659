#include "bench/creek.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "apps/dit_costs.h"
#include "bench/gpu.h"
#include "bench/report.h"
#include "models/creek_vae/creek_vae.h"
#include "models/sana_streaming/dit_stream.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "tensor/cuda.h"
#include "train/distill_trainer.h"

namespace rivulet::bench {
namespace {

constexpr int64_t kHeight = 18, kWidth = 32;  // latents of 256x144
constexpr int64_t kChannels = 32;

std::string in_models(const std::string& file) { return std::string(RIVULET_SOURCE_DIR) + "/models/" + file; }

// Median seconds of f() by the host's clock, the GPU idle before and after.
double seconds_of(int repetitions, const std::function<void()>& f) {
  std::vector<double> seconds;
  for (int i = 0; i < repetitions + 2; ++i) {
    synchronize(Device::cuda);
    const auto begin = std::chrono::steady_clock::now();
    f();
    synchronize(Device::cuda);
    if (i >= 2)
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

class Report {
 public:
  explicit Report(nlohmann::json file) : file_(std::move(file)) {}
  void add(const std::string& name, double seconds, double tflop = 0, const std::string& note = "") {
    nlohmann::json row = {{"name", name}, {"seconds", seconds}, {"peak_bytes", cuda_memory().peak}};
    if (tflop > 0) row["tflop"] = tflop;
    file_["rows"].push_back(row);
    std::printf("%-58s %9.2f ms", name.c_str(), 1e3 * seconds);
    if (tflop > 0) std::printf("  %7.3f TFLOP  %6.1f TFLOP/s", tflop, tflop / seconds);
    std::printf("  peak %.1f GB %s\n", 1e-9 * double(cuda_memory().peak), note.c_str());
    std::fflush(stdout);
    cuda_trim();
  }
  nlohmann::json file_;
};

EditModelConfig creek_config(const std::string& file) {
  Json j = read_json(in_models("creek/" + file));
  j["vocabulary"] = {"blue", "keep", "make", "red"};
  return read_edit_model_config(Fields(j, file));
}

// Random everywhere, so that nothing is timed on zeros.
void fill_random(EditModel& model) {
  Rng rng{11};
  model.initialise(rng);
  for_each_tensor(model, [&](const std::string&, Tensor& w) {
    if (w.dims() < 2) return;
    const double fan_in = double(w.numel()) / double(w.dim(0));
    w.detach().add_in_place(randn(w.shape(), rng, DType::f32, w.device()), 0.5 / std::sqrt(fan_in));
  });
}

std::unique_ptr<EditModel> creek(const std::string& file, bool recompute) {
  auto model = std::make_unique<EditModel>(creek_config(file), Device::cuda);
  fill_random(*model);
  prepare(*model, {DType::bf16, recompute});
  return model;
}

Tensor normal(const Shape& shape, uint64_t seed) {
  Rng rng{seed};
  return randn(shape, rng, DType::f32, Device::cuda);
}

// TFLOP of one forward of `samples` clips of T frames by themselves.
double forward_tflop(const DitConfig& c, int64_t samples, int64_t T) {
  double flops = 0;
  const int64_t tokens = T * kHeight * kWidth;
  for (const auto& [name, cost] : pass_costs(c, tokens, T, tokens, 24)) flops += cost.flops;
  return 1e-12 * flops * double(samples);
}

void time_gemm(Report& report) {
  const NoGrad off;
  const Tensor a = normal({8192, 8192}, 1).to(DType::bf16), b = normal({8192, 8192}, 2).to(DType::bf16);
  report.add("product of 8192 x 8192 matrices", seconds_of(10, [&] { linear(a, b); }),
             2e-12 * std::pow(8192.0, 3));
}

void time_flow(Report& report, int repetitions, int64_t batch, bool recompute) {
  const auto model = creek("bidirectional.json", recompute);
  const NamedTensors params = named_tensors(*model);
  set_requires_grad(params, true);
  AdamW adam(params, {.weight_decay = 0.01});
  Ema ema(adam.masters(), 0.999, 0);
  const Shape shape{batch, kChannels, 11, kHeight, kWidth};
  const Tensor source = normal(shape, 3), target = normal(shape, 4), eps = normal(shape, 5);
  const std::vector<std::string> texts(size_t(batch), "make red");
  int64_t step = 0;
  double loss_value = 0;
  const double seconds = seconds_of(repetitions, [&] {
    const Tensor loss = clip_flow_loss(net_of(*model), target, eps, source, levels_of(batch, 0.75),
                                       levels_of(batch, 750), model->encode(texts));
    loss_value = loss.item();
    zero_grad(params);
    backward(loss);
    adam.step(1e-4, clip_scale(grad_norm(params), 1));
    ema.update(step++);
  });
  report.add(
      "flow matching, " + std::to_string(batch) + " clips of 11 latents" + (recompute ? ", run again" : ""),
      seconds, forward_tflop(model->config().dit, batch, 11) * (recompute ? 4 : 3),
      "loss " + std::to_string(loss_value) + ", " + std::to_string(count_elements(params)) + " parameters");
}

void time_ode(Report& report, int repetitions, int64_t batch) {
  const auto model = creek("streaming.json", false);
  const NamedTensors params = named_tensors(*model);
  set_requires_grad(params, true);
  const std::vector<double> steps{1000, 961, 893, 743};
  const Tensor states = normal({batch, 5, kChannels, 11, kHeight, kWidth}, 6);
  const Tensor source = normal({batch, kChannels, 11, kHeight, kWidth}, 7);
  const std::vector<std::string> texts(size_t(batch), "make red");
  const std::vector<int64_t> chunks{5, 3, 3};
  Rng rng{8};
  report.add("ODE initialisation, " + std::to_string(batch) + " clips, without the optimizer",
             seconds_of(repetitions, [&] {
               zero_grad(params);
               backward(ode_loss(net_of(*model), mix_states(states, chunks, steps, 8, rng), source,
                                 model->encode(texts), chunks));
             }));
}

void time_self_forcing(Report& report, int repetitions, int64_t batch) {
  const auto student = creek("streaming.json", false), real = creek("streaming.json", false),
             fake = creek("streaming.json", false);
  const Examples streams = [](int64_t index) {
    Rng rng{uint64_t(index)};
    return Example{randn({kChannels, 56, kHeight, kWidth}, rng), {}, {}, "make red", "make blue"};
  };
  LatentBatches data(streams, identity_space(Device::cuda), batch, 4);
  SelfForcingOptions options;
  options.reverse = "paper";
  SelfForcing stage(role_of(*student), role_of(*real), role_of(*fake), options, data);
  const NamedTensors student_params = named_tensors(*student), fake_params = named_tensors(*fake);
  set_requires_grad(student_params, true);
  set_requires_grad(fake_params, true);
  AdamW student_adam(student_params, {}), fake_adam(fake_params, {});
  Rng rng{9};
  const auto turn = [&](const NamedTensors& params, AdamW& adam, const std::function<StepLoss()>& loss_of) {
    zero_grad(params);
    backward(loss_of().loss);
    adam.step(1e-6, clip_scale(grad_norm(params), 10));
  };
  const std::string name = std::to_string(batch) + " streams, exit 1";
  report.add("turn of the student, " + name, seconds_of(repetitions, [&] {
               turn(student_params, student_adam, [&] { return stage.student_loss(0, {1, 1}, rng); });
             }));
  report.add("turn of the fake score, " + name, seconds_of(repetitions, [&] {
               turn(fake_params, fake_adam, [&] { return stage.critic_loss(0, {1, 1}, rng); });
             }));
}

void time_vae(Report& report, int repetitions) {
  const Json run = read_json(in_models("creek_vae/train_2.json"));
  CreekVae vae(read_creek_vae_config(Fields(run["model"], "creek_vae")), Device::cuda);
  Rng rng{10};
  vae.vae.initialise(rng);
  vae.vae.latents_mean.fill(0);
  vae.vae.latents_std.fill(1);
  pack_convs(vae.vae);
  const LatentSpace space = vae_space(vae.vae);
  const Tensor clips = full({8, 41, 144, 256, 3}, 0.5) + randn({8, 41, 144, 256, 3}, rng) * 0.2;
  const Tensor ten = normal({8, kChannels, 10, kHeight, kWidth}, 12);
  for (DType dtype : {DType::f32, DType::bf16}) {
    vae.vae.compute = dtype;
    const std::string name = dtype == DType::bf16 ? " in bf16" : " in f32";
    report.add("encoding 8 clips of 41 frames at 256x144" + name,
               seconds_of(repetitions, [&] { space.encode(clips); }));
    report.add("last picture of 8 windows, encoded anew" + name,
               seconds_of(repetitions, [&] { space.last_picture(ten); }));
  }
}

void time_stream(Report& report, int repetitions) {
  constexpr int64_t h = 45, w = 80;
  EditModelConfig config = creek_config("streaming.json");
  FusedDit fused(config.dit, DType::bf16, Device::cuda);
  Rng rng{13};
  fused.fill_random(rng);
  DitStream stream(fused, {.height = h, .width = w});
  stream.set_text(normal({1, 24, config.dit.caption_channels}, 14), ones({1, 24}, DType::u8, Device::cuda));
  const auto chunk = [&] {
    const int64_t T = stream.next_frames();
    const Tensor source = normal({1, kChannels, T, h, w}, 15), x = normal({1, kChannels, T, h, w}, 16);
    stream.begin_chunk(source);
    for (size_t k = 0; k < 4; ++k) stream.velocity(x, k);
    stream.end_chunk(x);
  };
  for (int i = 0; i < 5; ++i) chunk();
  double flops = 0;
  for (const auto& [name, cost] : pass_costs(config.dit, 3 * h * w, 3, 11 * h * w, 24)) flops += cost.flops;
  report.add("a chunk of 12 frames at 640x360: 4 passes and the memory's", seconds_of(repetitions, chunk),
             5e-12 * flops);
}

}  // namespace

nlohmann::json time_creek(int repetitions) {
  check(cuda_available(), "rivulet-bench: this machine has no GPU that the kernels run on");
  Report report(gpu_result_file(DType::bf16));
  time_gemm(report);
  time_flow(report, repetitions, 8, false);
  time_flow(report, repetitions, 16, false);
  time_flow(report, repetitions, 16, true);
  time_ode(report, repetitions, 8);
  time_self_forcing(report, repetitions, 8);
  time_vae(report, repetitions);
  time_stream(report, repetitions);
  return report.file_;
}

}  // namespace rivulet::bench
