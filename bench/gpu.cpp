#include "bench/gpu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "bench/gpu_timing.h"
#include "bench/report.h"
#include "models/sana_streaming/dit.h"
#include "ops/all.h"
#include "ops/parity.h"
#include "tensor/autograd.h"
#include "tensor/cuda.h"

namespace rivulet::bench {
namespace {

Tensors inputs_of(const OpCase& op, const Shapes& shapes, DType dtype) {
  Rng rng{1};
  Tensors inputs;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const Tensor x = op.fill ? op.fill(shapes[i], int(i), rng, dtype) : randn(shapes[i], rng, dtype);
    inputs.push_back(x.to(Device::cuda));
  }
  return inputs;
}

}  // namespace

std::function<void()> op_work(const OpCase& op, const Shapes& shapes, DType dtype, bool with_backward) {
  const Tensors inputs = inputs_of(op, shapes, dtype);
  if (!with_backward)
    return [&op, inputs] {
      const NoGrad off;
      op.run(inputs);
    };
  const auto cotangents = std::make_shared<Tensors>();
  return [&op, inputs, cotangents] {
    Tensors leaves, roots, seeds;
    for (size_t i = 0; i < inputs.size(); ++i) {
      leaves.push_back(inputs[i].detach());
      if (is_floating(inputs[i].dtype()) && (op.differentiable.empty() || op.differentiable[i]))
        leaves[i].set_requires_grad();
    }
    const Tensors ys = op.run(leaves);
    if (cotangents->empty()) {
      Rng rng{2};
      for (const Tensor& y : ys) cotangents->push_back(randn(y.shape(), rng, y.dtype()).to(y.device()));
    }
    for (size_t i = 0; i < ys.size(); ++i)
      if (ys[i].requires_grad()) {
        roots.push_back(ys[i]);
        seeds.push_back((*cotangents)[i]);
      }
    if (!roots.empty()) backward(roots, seeds);
  };
}

namespace {

nlohmann::json time_row(const OpCase& op, const Shapes& shapes, const std::string& name, const Flush& flush,
                        const GpuSettings& settings, const Ceilings& best) {
  const auto work = op_work(op, shapes, settings.dtype, settings.backward);
  Counts counts;
  if (!settings.backward) counts = {op.bytes(shapes) * double(size_of(settings.dtype)) / 4, op.flops(shapes)};
  nlohmann::json row = time_work(name, work, counts, settings.repetitions, flush, best);
  row["op"] = op.name;
  for (const Shape& s : shapes) row["shapes"].push_back(std::vector<int64_t>(s.begin(), s.end()));
  return row;
}

}  // namespace

nlohmann::json run_on_gpu(const std::regex& pattern, const GpuSettings& settings, int& red) {
  check(cuda_available(), "rivulet-bench: this machine has no GPU that the kernels run on");
  const Flush flush;
  const Ceilings best = measure_ceilings(settings.dtype, flush);
  nlohmann::json file = gpu_result_file(settings.dtype);
  file["copy_gb_s"] = best.copy_gb_s;
  file["gemm_tflop_s"] = best.gemm_tflop_s;
  std::printf("%s, %s: copies %.0f GB/s, products %.0f TFLOP/s\n", file["gpu"].get<std::string>().c_str(),
              name_of(settings.dtype), best.copy_gb_s, best.gemm_tflop_s);
  print_head();
  for (const OpCase* op : all_op_cases()) {
    bool checked = false;
    for (const Shapes& shapes : op->bench) {
      std::ostringstream name;
      name << op->name;
      for (const Shape& s : shapes) name << ' ' << s;
      if (settings.backward) name << " +backward";
      if (!std::regex_search(name.str(), pattern)) continue;
      if (const ParityRow parity =
              checked ? ParityRow{} : check_parity(*op, Device::cuda, settings.dtype, false);
          !checked && !parity.passed()) {
        ++red;
        std::printf("%10s %s\n", "RED", to_string(parity).c_str());
        file["rows"].push_back({{"name", name.str()}, {"op", op->name}, {"red", to_string(parity)}});
        break;
      }
      checked = true;
      file["rows"].push_back(time_row(*op, shapes, name.str(), flush, settings, best));
    }
  }
  return file;
}

nlohmann::json time_training_step(int repetitions, int64_t depth) {
  check(cuda_available(), "rivulet-bench: this machine has no GPU that the kernels run on");
  DitConfig config;
  config.variant = "bidirectional";
  config.depth = depth;
  std::erase_if(config.softmax_blocks, [&](int64_t block) { return block >= depth; });
  Dit dit(config, Device::cuda);
  Rng rng{11};
  dit.initialise(rng);
  // Noise on every matrix: layers that start at zero would be timed on zeros.
  for_each_tensor(dit, [&](const std::string&, Tensor& w) {
    if (w.dims() < 2) return;
    const double fan_in = double(w.numel()) / double(w.dim(0));
    w.add_in_place(randn(w.shape(), rng, DType::f32, Device::cuda), 0.5 / std::sqrt(fan_in));
  });
  convert(dit, DType::bf16);
  dit.recompute = true;
  const NamedTensors parameters = named_tensors(dit);
  set_requires_grad(parameters, true);
  const int64_t frames = 11, height = 22, width = 40, tokens = 300;
  const auto normal = [&](const Shape& s) { return randn(s, rng, DType::bf16).to(Device::cuda); };
  const Tensor x = normal({1, 2 * config.latent_channels, frames, height, width});
  const Tensor target = normal({1, config.latent_channels, frames, height, width});
  const Tensor text = normal({1, tokens, config.caption_channels});
  const Tensor mask = ones({1, tokens}, DType::u8, Device::cuda),
               t = full({1}, 500, DType::f32, Device::cuda);
  Timing forward_s, both_s;
  double loss_value = 0;
  for (int i = 0; i < repetitions + kGpuWarmUps; ++i) {
    for (auto [name, p] : parameters) p.set_grad({});
    const GpuMark begin;
    const Tensor loss = mse_loss(dit(x, t, dit.text_context(text, mask)), target);
    const GpuMark middle;
    backward(loss);
    const GpuMark end;
    if (i >= kGpuWarmUps) {
      forward_s.seconds.push_back(middle.since(begin));
      both_s.seconds.push_back(end.since(begin));
    }
    loss_value = loss.item();
  }
  for (Timing* t : {&forward_s, &both_s}) std::sort(t->seconds.begin(), t->seconds.end());
  int64_t finite = 0;
  for (const auto& [name, p] : parameters)
    if (p.grad().defined()) ++finite;
  nlohmann::json file = gpu_result_file(DType::bf16);
  file["rows"].push_back({{"name", "dit_2b_training_step 9680 tokens"},
                          {"depth", depth},
                          {"warm_up_runs", kGpuWarmUps},
                          {"repetitions", repetitions},
                          {"forward_s", forward_s.median()},
                          {"forward_spread", forward_s.spread()},
                          {"forward_backward_s", both_s.median()},
                          {"forward_backward_spread", both_s.spread()},
                          {"forward_backward_min_s", both_s.seconds.front()},
                          {"forward_backward_max_s", both_s.seconds.back()},
                          {"loss", loss_value},
                          {"gradients", finite},
                          {"peak_bytes", cuda_memory().peak}});
  std::printf(
      "training step of the 2B network, %lld blocks, 9680 tokens: forward %.1f ms, forward + backward %.1f "
      "ms, peak "
      "%.2f GB, loss %.4f\n",
      static_cast<long long>(depth), 1e3 * forward_s.median(), 1e3 * both_s.median(),
      1e-9 * double(cuda_memory().peak), loss_value);
  return file;
}

}  // namespace rivulet::bench
