// Benchmark rows of the bundled network.
#include <cmath>
#include <memory>
#include <sstream>

#include "bench/network.h"
#include "bench/row.h"
#include "tensor/parallel.h"

namespace rivulet::bench {
namespace {

// Made when it is first used: a row that is not asked for loads nothing.
template <class Work>
class Lazy {
 public:
  Work& operator*() {
    if (!work_) work_ = std::make_unique<Work>();
    return *work_;
  }
  Work* operator->() { return &**this; }

 private:
  std::unique_ptr<Work> work_;
};

class OneThread {
 public:
  OneThread() { set_threads(1); }
  ~OneThread() { set_threads(before_); }

 private:
  int before_ = num_threads();
};

// Every value finite, and bit for bit those that one thread computes.
template <class F>
std::string wrong_result(F&& run) {
  const std::vector<double> values = run().to_vector();
  for (double v : values)
    if (!std::isfinite(v)) return "the result is not finite";
  const OneThread alone;
  return run().to_vector() == values ? "" : "one thread gives other values";
}

std::string wrong_training() {
  const auto losses = [] {
    TrainingStep fresh;
    std::vector<double> list;
    for (int i = 0; i < 4; ++i) list.push_back(fresh.run());
    return list;
  };
  const std::vector<double> seen = losses();
  for (size_t i = 1; i < seen.size(); ++i)
    if (!(seen[i] < seen[i - 1])) {
      std::ostringstream text;
      text << "on one batch the loss goes from " << seen[i - 1] << " to " << seen[i];
      return text.str();
    }
  const OneThread alone;
  return losses() == seen ? "" : "one thread gives other losses";
}

Row row_of(const std::string& op, const Shape& shape) {
  std::ostringstream name;
  name << op << ' ' << shape;
  Row row;
  row.name = name.str();
  row.op = op;
  row.shapes = {shape};
  return row;
}

}  // namespace

std::vector<Row> network_rows() {
  const EditModelConfig c = brook_config();
  const int64_t T = c.dit.chunk_frames, h = 144 / c.patch, w = 256 / c.patch, text = c.instruction_tokens;
  // Kept chunks: the first one, and steady ones.
  const int64_t kept = c.dit.cached_chunks == 0 ? 0 : c.first_chunk_frames + (c.dit.cached_chunks - 1) * T;
  const double call = dit_flops(c.dit, 1, T, h, w, (kept + T) * h * w, text);

  const auto forward = std::make_shared<Lazy<Forward>>();
  Row one = row_of("brook_dit_forward", {1, 2 * c.dit.latent_channels, T, h, w});
  one.run = [forward] { (*forward)->run(); };
  one.flops = call;
  one.red = [forward] { return wrong_result([&] { return (*forward)->run(); }); };
  one.save = [forward](const std::string& path) { (*forward)->save(path); };

  const auto chunk = std::make_shared<Lazy<Chunk>>();
  Row five = row_of("brook_chunk", {T, 144, 256, 3});
  five.run = [chunk] { (*chunk)->run(); };
  five.flops = call * double(SampleOptions{}.steps.size() + 1);
  five.frames = double(T);
  five.red = [chunk] { return wrong_result([&] { return (*chunk)->run(); }); };
  five.save = [chunk](const std::string& path) { (*chunk)->save(path); };

  const auto training = std::make_shared<Lazy<TrainingStep>>();
  const int64_t first = c.first_chunk_frames, th = 96 / c.patch, tw = 128 / c.patch;
  Row step = row_of("brook_training_step", {TrainingStep::kBatch, c.dit.latent_channels, first, th, tw});
  step.run = [training] { (*training)->run(); };
  // The backward makes two products for each one of the forward.
  step.flops = 3 * dit_flops(c.dit, TrainingStep::kBatch, first, th, tw, first * th * tw, text);
  step.red = wrong_training;
  step.save = [](const std::string& path) { TrainingStep().save(path); };
  return {one, five, step};
}

}  // namespace rivulet::bench
