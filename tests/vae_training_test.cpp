// Training video autoencoders: the losses, the remap to a causal decoder, miniature runs of both tasks, and
// the command that measures a model.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>

#include "apps/commands.h"
#include "apps/video.h"
#include "models/creek_vae/creek_vae.h"
#include "models/golden.h"
#include "ops/elementwise.h"
#include "ops/shape.h"
#include "tests/fixtures.h"
#include "tests/op_fixtures.h"
#include "train/footage.h"
#include "train/vae_training.h"
#include "train/video_losses.h"

using namespace rivulet;

namespace {

Json tiny_model(bool causal) {
  return {{"name", "tiny"},
          {"latent_channels", 8},
          {"patch", 2},
          {"decoder_causal", causal},
          {"encoder",
           {{"width", 16},
            {"mid_layers", 1},
            {"stages", {{{"layers", 1}, {"stride", {2, 2, 2}}, {"width", 32}}}}}},
          {"decoder",
           {{"width", 32},
            {"mid_layers", 1},
            {"stages", {{{"layers", 1}, {"stride", {2, 2, 2}}, {"width", 16}}}}}}};
}

CreekVae tiny_vae(bool causal, uint64_t seed = 2) {
  CreekVae creek(read_creek_vae_config(Fields(tiny_model(causal), "test")));
  Rng rng{seed};
  creek.vae.initialise(rng);
  return creek;
}

// Smooth coloured clips, a function of the index alone: [5, 16, 16, 3].
Tensor clip_of(int64_t index) {
  Rng rng{uint64_t(index % 4)};
  const double a = rng.uniform(0.2, 0.8), b = rng.uniform(0.5, 2), c = rng.uniform(0, 6);
  Tensor clip({5, 16, 16, 3});
  float* p = clip.data<float>();
  for (int64_t i = 0; i < clip.numel(); ++i) {
    const double t = double(i / 768), y = double(i / 48 % 16), x = double(i / 3 % 16), k = double(i % 3);
    p[i] = float(0.5 + 0.4 * std::sin(a * x + b * 0.3 * y + c + 0.5 * t + k));
  }
  return clip;
}

Json run_json(const std::string& task, const std::string& dir, int64_t steps) {
  return {{"task", task},
          {"steps", steps},
          {"batch", 2},
          {"seed", 4},
          {"optimizer", {{"lr", 4e-3}, {"betas", {0.9, 0.99}}, {"clip_norm", 1}}},
          {"clip", {{"width", 16}, {"height", 16}, {"frames", 5}}},
          {"model", tiny_model(task == "vae_distill")},
          {"output", {{"dir", dir}}}};
}

struct Run {
  TrainConfig config;
  CreekVae creek;
  std::unique_ptr<VaeTraining> training;
  std::unique_ptr<Trainer> trainer;
  std::atomic<bool> stop{false};
  std::vector<double> psnr;

  Run(const Json& json, CreekVae model, const VideoVae* teacher = nullptr, int64_t stop_at = -1)
      : config(train_config(json, "test")), creek(std::move(model)) {
    training = std::make_unique<VaeTraining>(creek.vae, config, clip_of, 2, teacher);
    trainer = std::make_unique<Trainer>(config, trained_tensors(creek.vae, config),
                                        [this, stop_at](int64_t step, int64_t micro, Rng& rng) {
                                          if (step == stop_at) stop = true;
                                          StepLoss loss = training->loss(step, micro, rng);
                                          psnr.push_back(loss.metrics.at(0).second);
                                          return loss;
                                        });
  }
};

std::vector<double> all_weights(VideoVae& vae) {
  std::vector<double> all;
  for (const auto& [name, t] : named_tensors(vae))
    for (double v : t.detach().to_vector()) all.push_back(v);
  return all;
}

}  // namespace

TEST_CASE("losses of known differences") {
  const Tensor zero = zeros({1, 2, 8, 8, 3}), flat = full({1, 2, 8, 8, 3}, 0.5);
  Tensor checks = zeros({1, 2, 8, 8, 3}), stripes = zeros({1, 2, 8, 8, 3});
  for (int64_t i = 0; i < checks.numel(); ++i) {
    const int64_t x = i / 3 % 8, y = i / 24 % 8;
    checks.data<float>()[i] = (x + y) % 2 ? -1 : 1;
    stripes.data<float>()[i] = x % 2 ? -1 : 1;
  }
  CHECK(haar_loss(flat, zero).item() == 0);
  CHECK(haar_loss(checks, zero).item() == doctest::Approx(2.0 / 3));
  CHECK(haar_loss(flat + stripes, flat).item() == doctest::Approx(2.0 / 3));
  CHECK(laplacian_loss(flat, zero).item() == doctest::Approx(0.5));  // all of it in the last level
  CHECK(laplacian_loss(zero, zero).item() == 0);
  CHECK(laplacian_loss(checks, zero, 1).item() == doctest::Approx(1));
  CHECK(laplacian_loss(checks, zero, 2).item() > 0.99);
  CHECK_THROWS_AS(haar_loss(zeros({1, 1, 3, 4, 3}), zeros({1, 1, 3, 4, 3})), Error);
  const Tensor mu = full({2, 3, 4}, 2), none = zeros({2, 3, 1});
  CHECK(kl_loss(zeros({2, 3, 4}), none).item() == doctest::Approx(0));
  CHECK(kl_loss(mu, none).item() == doctest::Approx(2));
  CHECK(kl_loss(zeros({2, 3, 4}), full({2, 3, 1}, 1)).item() == doctest::Approx((std::exp(1.0) - 2) / 2));
  CHECK(feature_loss({mu * 1.5, none}, {mu, none + 1.0}).item() == doctest::Approx((0.25 + 1) / 2));
}

TEST_CASE("gradients of the losses against differences") {
  Rng rng{3};
  const Tensor b = randn({1, 1, 4, 8, 3}, rng, DType::f64), direction = randn(b.shape(), rng, DType::f64);
  for (const auto& loss : std::vector<std::function<Tensor(const Tensor&)>>{
           [&](const Tensor& a) { return haar_loss(a, b); },
           [&](const Tensor& a) { return laplacian_loss(a, b, 2); },
           [&](const Tensor& a) { return kl_loss(a, b); },
           [&](const Tensor& a) { return feature_loss({a}, {b}); }}) {
    Tensor a = (b + 1.0).detach() + direction * 0.3;
    a = a.detach();
    a.set_requires_grad();
    backward(loss(a));
    const NoGrad off;
    double slope = 0;
    const auto g = a.grad().to_vector(), d = direction.to_vector();
    for (size_t i = 0; i < g.size(); ++i) slope += g[i] * d[i];
    const double h = 1e-6, up = loss(a + direction * h).item(), down = loss(a - direction * h).item();
    CHECK((up - down) / (2 * h) == doctest::Approx(slope).epsilon(1e-5));
  }
}

TEST_CASE("the remap keeps what does not change in time") {
  const NoGrad off;
  Rng rng{6};
  CausalConv3d conv(3, 4, Border::reflect, Device::cpu);
  conv.weight.copy_from(randn(conv.weight.shape(), rng));
  conv.bias.copy_from(randn({4}, rng));
  CreekVae teacher = tiny_vae(false);
  for (const auto& [name, t] : named_tensors(teacher.vae))
    if (name.find("latents") == std::string::npos) t.add_in_place(randn(t.shape(), rng), 0.05);
  CreekVae student(teacher.config);
  for (size_t i = 0; i < named_tensors(student.vae).size(); ++i)
    named_tensors(student.vae)[i].second.copy_from(named_tensors(teacher.vae)[i].second);
  remap_to_causal(student.vae.decoder);

  // Every convolution of the decoder: equal on a still input, causal with the new taps, two-way with the old.
  const auto same_on_still = [&](const CausalConv3d& old_conv, const CausalConv3d& new_conv) {
    const Tensor still =
        randn({1, 1, 4, 4, old_conv.weight.dim(1)}, rng).expand({1, 5, 4, 4, old_conv.weight.dim(1)});
    TimePass both = TimePass::clip(false), causal = TimePass::clip(true);
    CHECK(relative_error(new_conv(still, causal), old_conv(still, both)) < 1e-6);
    CHECK(new_conv.weight.slice(2, 0, 1).to_vector() ==
          zeros(new_conv.weight.slice(2, 0, 1).shape()).to_vector());
    CHECK(new_conv.weight.slice(2, 1, 2).to_vector() == old_conv.weight.slice(2, 0, 1).to_vector());
    CHECK(new_conv.bias.to_vector() == old_conv.bias.to_vector());
  };
  const VideoDecoder &before = teacher.vae.decoder, &after = student.vae.decoder;
  same_on_still(before.conv_in, after.conv_in);
  same_on_still(before.conv_out, after.conv_out);
  same_on_still(before.mid_block.resnets[0].conv2, after.mid_block.resnets[0].conv2);
  same_on_still(before.up_blocks[0].upsamplers[0].conv, after.up_blocks[0].upsamplers[0].conv);
  same_on_still(before.up_blocks[0].resnets[0].conv1, after.up_blocks[0].resnets[0].conv1);

  // One latent is a still all the way; a moving clip is another matter.
  const Tensor z = randn({1, 8, 4, 3, 3}, rng), one = z.slice(2, 0, 1);
  CHECK(relative_error(student.vae.decode(one, true), teacher.vae.decode(one, false)) < 1e-6);
  CHECK(relative_error(student.vae.decode(z, true), teacher.vae.decode(z, false)) > 1e-3);
  // Streamed, and blind to what comes later.
  VideoState state;
  Tensors parts;
  for (int64_t t = 0; t < 4; ++t) parts.push_back(student.vae.decode(z.slice(2, t, t + 1), state));
  CHECK(relative_error(cat(parts, 1), student.vae.decode(z, true)) < 1e-6);
  Tensor changed = z.clone();
  changed.slice(2, 3, 4).fill(2);
  CHECK(relative_error(student.vae.decode(changed, true).slice(1, 0, 5),
                       student.vae.decode(z, true).slice(1, 0, 5)) < 1e-6);
}

TEST_CASE("an autoencoder learns in miniature, and a resumed run is the uninterrupted one") {
  TempDir whole_dir, cut_dir;
  Run whole(run_json("vae", whole_dir.path, 40), tiny_vae(false));
  CHECK(whole.trainer->run());
  CHECK(whole.psnr.back() > whole.psnr.front() + 4);
  {
    Run first(run_json("vae", cut_dir.path, 40), tiny_vae(false), nullptr, 14);
    CHECK(!first.trainer->run(nullptr, &first.stop));
    CHECK(first.trainer->steps_done() == 15);
  }
  Run second(run_json("vae", cut_dir.path, 40), tiny_vae(false, 77));
  CHECK(second.trainer->resume_latest());
  CHECK(second.trainer->run());
  CHECK(all_weights(second.creek.vae) == all_weights(whole.creek.vae));

  // Statistics make latents of mean 0 and deviation 1.
  measure_latents(whole.creek.vae, {clip_of(0), clip_of(1)});
  const NoGrad off;
  const Tensor z = whole.creek.vae.encode(stack({clip_of(0), clip_of(1)}, 0) * 2.0 - 1.0);
  const auto v = z.transpose(0, 1).reshape({8, -1}).select(0, 3).to_vector();
  double mean = 0, square = 0;
  for (double x : v) mean += x / double(v.size()), square += x * x / double(v.size());
  CHECK(std::abs(mean) < 1e-4);
  CHECK(square == doctest::Approx(1).epsilon(1e-2));
}

TEST_CASE("computing in bf16 trains f32 weights") {
  TempDir dir, wide_dir;
  Json json = run_json("vae", dir.path, 40);
  json["compute"] = "bf16";
  CreekVae half = tiny_vae(false);
  half.vae.compute = DType::bf16;
  Run narrow(json, std::move(half)), wide(run_json("vae", wide_dir.path, 40), tiny_vae(false));
  Rng one{5}, other{5};
  backward(narrow.training->loss(0, 0, one).loss);
  backward(wide.training->loss(0, 0, other).loss);
  double dot = 0, square_n = 0, square_w = 0;
  for (size_t i = 0; i < narrow.trainer->params().size(); ++i) {
    const Tensor grad = narrow.trainer->params()[i].second.grad();
    CHECK(grad.dtype() == DType::f32);
    const auto n = grad.to_vector(), w = wide.trainer->params()[i].second.grad().to_vector();
    for (size_t k = 0; k < n.size(); ++k)
      dot += n[k] * w[k], square_n += n[k] * n[k], square_w += w[k] * w[k];
  }
  CHECK(dot > 0.99 * std::sqrt(square_n * square_w));
  CHECK(square_n == doctest::Approx(square_w).epsilon(0.05));
  CHECK(narrow.trainer->run());
  CHECK(narrow.psnr.back() > narrow.psnr.front() + 4);
}

TEST_CASE("a remapped decoder learns from its teacher; the encoder stays") {
  TempDir teacher_dir, dir;
  Run teacher(run_json("vae", teacher_dir.path, 60), tiny_vae(false));
  teacher.trainer->run();
  CreekVae start(read_creek_vae_config(Fields(tiny_model(true), "test")));
  {
    const NoGrad off;
    const NamedTensors from = named_tensors(teacher.creek.vae);
    const NamedTensors to = named_tensors(start.vae);
    for (size_t i = 0; i < to.size(); ++i) to[i].second.copy_from(from[i].second);
  }
  remap_to_causal(start.vae.decoder);
  const auto encoder = start.vae.encoder.conv_out.weight.to_vector();
  Json json = run_json("vae_distill", dir.path, 40);
  json["loss"] = {{"features", 0.1}};
  Run student(json, std::move(start), &teacher.creek.vae);
  CHECK(student.trainer->run());
  CHECK(student.psnr.back() > student.psnr.front() + 1);
  CHECK(student.creek.vae.encoder.conv_out.weight.to_vector() == encoder);
}

TEST_CASE("creek: its configurations, sizes and files") {
  TempDir dir;
  for (const char* name : {"train_1.json", "train_2.json"}) {
    const TrainConfig config =
        read_train_config(std::string(RIVULET_SOURCE_DIR) + "/models/creek_vae/" + name);
    read_vae_loss_weights(Fields(config.loss, name));
    const CreekVaeConfig creek = read_creek_vae_config(Fields(config.model, name));
    CHECK(to_json(read_creek_vae_config(Fields(to_json(creek), "again"))) == to_json(creek));
    CreekVae model(creek, Device::meta);
    CHECK(count_elements(named_tensors(model.vae)) < 20'000'000);
    CHECK(model.vae.config().spatial() == 8);
    CHECK(model.vae.config().temporal() == 4);
    CHECK((config.frames - 1) % 4 == 0);
  }
  CreekVae saved = tiny_vae(true);
  saved.save(dir.path);
  const CreekVae loaded = CreekVae::load(dir.path);
  const NoGrad off;
  const Tensor clip = clip_of(1).unsqueeze(0);
  CHECK(loaded.vae.encode(clip).to_vector() == saved.vae.encode(clip).to_vector());
  Json bad = tiny_model(true);
  bad["encoder"]["stages"][0]["stride"] = {2, 2, 1};
  CHECK_THROWS_WITH_AS(read_creek_vae_config(Fields(bad, "x.json")),
                       doctest::Contains("encoder.stages[0].stride"), Error);
}

TEST_CASE("rivulet train and rivulet vae, from footage to a decoded clip") {
  TempDir dir;
  const auto bytes = [](const Tensor& pixels) { return (pixels * 255.0).to(DType::u8).contiguous(); };
  save_footage(dir / "footage.safetensors",
               {{"clip.a", "made", "CC0", bytes(clip_of(0))}, {"clip.b", "made", "CC0", bytes(clip_of(1))}});
  Json json = run_json("vae", dir / "run", 4);
  json["data"] = {{"footage", dir / "footage.safetensors"}};
  json["output"]["sample_every"] = 4;
  write_file(dir / "train.json", json.dump());
  const auto train = [&](const std::string& config, const std::string& init) {
    TrainOptions options;
    options.config = dir / config;
    options.init = init;
    return run_train(options);
  };
  CHECK(train("train.json", "") == 0);
  CHECK(std::filesystem::exists(dir / "run/sample_4.png"));
  Json distil = run_json("vae_distill", dir / "run2", 2);
  distil["data"] = json["data"];
  write_file(dir / "distil.json", distil.dump());
  CHECK_THROWS_WITH_AS(train("distil.json", ""), doctest::Contains("--init"), Error);
  CHECK(train("distil.json", dir / "run/model") == 0);

  // 8 frames are no whole number of latents; 18 pixels no whole number of patches.
  VideoInfo info;
  info.size = {20, 18};
  const auto sink = open_sink(dir / "in.y4m", info);
  sink->write(resize_frames(cat({bytes(clip_of(0)), bytes(clip_of(2)).slice(0, 0, 3)}, 0), info.size));
  sink->finish();
  VaeOptions options;
  options.in = dir / "in.y4m";
  options.sheet = dir / "sheet.png";
  int number = 0;
  for (const char* model : {"run/model", "run2/model"})
    for (const bool remap : {false, true}) {
      options.model = dir / model;
      options.remap = remap;
      options.out = dir / ("out" + std::to_string(number++) + ".y4m");
      CHECK(run_vae(options) == 0);
      const Tensor all = open_source(options.out)->read(100);
      CHECK(all.dim(0) == 8);
      CHECK(all.dim(1) % 4 == 0);
      CHECK(all.dim(2) == 20);
      CHECK(std::filesystem::exists(options.sheet));
    }
  options.remap = false;
  options.tiles = true;
  options.out = dir / "tiles.y4m";
  CHECK_THROWS_WITH_AS(run_vae(options), doctest::Contains("causal"), Error);
  options.model = dir / "run/model";
  CHECK(run_vae(options) == 0);
  CHECK(open_source(options.out)->read(100).dim(0) == 8);
  options.tiles = false;
  options.frames = 2;
  options.out = dir / "two.y4m";
  CHECK(run_vae(options) == 0);
  CHECK(open_source(options.out)->read(100).dim(0) == 2);
}
