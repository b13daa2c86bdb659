#include "quant/measure_cost.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "ops/matmul.h"
#include "ops/quantized_linear.h"
#include "tensor/cuda.h"
#include "tensor/cuda_event.h"

namespace rivulet {
namespace {

constexpr int64_t kBeyondCaches = int64_t(160) << 20;  // bytes of operands that are cycled through

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + int64_t(v.size()) / 2, v.end());
  return v[v.size() / 2];
}

// Median microseconds of work(i), i counting up.
template <class F>
double time_us(Device device, int64_t repetitions, F&& work) {
  for (int64_t i = 0; i < 3; ++i) work(i);
  std::vector<double> us;
  for (int64_t i = 0; i < repetitions; ++i) {
    if (device == Device::cuda) {
      CudaEvent begin, end;
      begin.record();
      work(i);
      end.record();
      us.push_back(1e3 * begin.milliseconds_to(end));
    } else {
      const auto begin = std::chrono::steady_clock::now();
      work(i);
      us.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    }
  }
  return median(std::move(us));
}

}  // namespace

Json measure_costs(const std::vector<LayerWork>& layers, const std::vector<Choice>& choices, Device device,
                   int64_t repetitions) {
  const NoGrad off;
  std::set<ProductShape> shapes;
  std::set<std::pair<int64_t, int64_t>> copies;
  std::set<int64_t> ranks;
  for (const Choice& c : choices) ranks.insert(c.rank);
  for (const LayerWork& w : layers) {
    if (w.layer == Layer::scores) continue;
    shapes.insert(w.shape);
    copies.insert({w.shape.rows, w.columns});
    for (const int64_t r : ranks)  // the two products of a low-rank branch, as the model is
      if (const int64_t rank = std::min({r, w.shape.out, w.shape.in}); rank > 0)
        shapes.insert({w.shape.rows, rank, w.shape.in}), shapes.insert({w.shape.rows, w.shape.out, rank});
  }
  std::set<Format> formats;
  for (const Choice& c : choices)
    if (runs_natively(c.format, device)) formats.insert(c.format);
  check(!formats.empty(),
        "cost measured: this device multiplies none of the formats by itself; name a cost file");

  Json out = {
      {"name", "measured"},
      {"kind", "table"},
      {"source", "measured"},
      {"unit", "us"},
      {"note", "Medians on this device, operands outside its caches; copies by a kernel of their own."},
      {"products", Json::array()},
      {"copies", Json::array()}};
  if constexpr (kHasCuda)
    if (device == Device::cuda)
      out["measured_on"] = {{"gpu", cuda::device_name()}, {"driver", cuda::driver_version()}};
  const DType dtype = device == Device::cuda ? DType::bf16 : DType::f32;
  Rng rng{1};
  const auto random = [&](int64_t rows, int64_t columns) {
    return randn({rows, columns}, rng, dtype, device);
  };
  for (const ProductShape& s : shapes) {
    const int64_t bytes = (s.rows + s.out) * s.in * size_of(dtype);
    const size_t sets = size_t(std::clamp<int64_t>(kBeyondCaches / std::max<int64_t>(bytes, 1), 2, 64));
    Tensors xs, ws;
    for (size_t i = 0; i < sets; ++i) xs.push_back(random(s.rows, s.in)), ws.push_back(random(s.out, s.in));
    const auto add = [&](const char* format, double us) {
      out["products"].push_back(
          {{"rows", s.rows}, {"out", s.out}, {"in", s.in}, {"format", format}, {"us", us}});
    };
    add("bf16",
        time_us(device, repetitions, [&](int64_t i) { linear(xs[size_t(i) % sets], ws[size_t(i) % sets]); }));
    for (const Format format : formats) {
      std::vector<QuantizedMatrix> qx, qw;
      for (size_t i = 0; i < sets; ++i)
        qx.push_back(quantize(xs[i], format)), qw.push_back(quantize(ws[i], format));
      const ProductOptions native{ProductOptions::Execution::native};
      add(name_of(format), time_us(device, repetitions, [&](int64_t i) {
            quantized_linear(qx[size_t(i) % sets], qw[size_t(i) % sets], {}, {}, dtype, native);
          }));
    }
  }
  for (const auto& [rows, columns] : copies)
    for (const Format format : formats) {
      const int64_t bytes = rows * columns * size_of(dtype);
      const size_t sets = size_t(std::clamp<int64_t>(kBeyondCaches / std::max<int64_t>(bytes, 1), 2, 64));
      Tensors xs;
      for (size_t i = 0; i < sets; ++i) xs.push_back(random(rows, columns));
      const double us =
          time_us(device, repetitions, [&](int64_t i) { quantize(xs[size_t(i) % sets], format); });
      out["copies"].push_back({{"rows", rows}, {"in", columns}, {"format", name_of(format)}, {"us", us}});
    }
  return out;
}

}  // namespace rivulet
