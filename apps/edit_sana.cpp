// rivulet edit --model sana-streaming-2b: the published networks out of a models folder.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iomanip>
#include <optional>
#include <sstream>

#include "apps/edit_backend.h"
#include "models/sana_editor.h"
#include "ops/gemm_choices.h"
#include "tensor/cuda.h"

namespace rivulet {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

DitConfig dit_config(const EditOptions& o) {
  DitConfig c;
  check(o.cached_chunks >= 1, "edit: --cached-chunks ", o.cached_chunks,
        "; the chunk before is always needed");
  c.cached_chunks = o.cached_chunks;
  c.sink = !o.no_sink;
  return c;
}

class SanaBackend : public EditBackend {
 public:
  explicit SanaBackend(const EditOptions& o)
      : options_(o), device_(device_named(o.device)), choices_(choices_of(device_)) {
    const auto start = Clock::now();
    check(o.state.empty(), "edit: --state is not kept for ", o.model);
    if (choices_) scope_.emplace(*choices_);
    weights_.emplace(SanaWeights::load(o.models, dit_config(o),
                                       device_ == Device::cuda ? DType::bf16 : DType::f32, device_));
    synchronize(device_);
    load_seconds_ = seconds_since(start);
  }

  std::string name() const override { return "sana-streaming-2b"; }
  void add_prompt(const std::string& text) override {
    const auto start = Clock::now();
    if (!options_.text_embedding.empty()) {
      texts_.push_back(read_text_embedding(options_.text_embedding));
    } else {
      if (!encoder_)
        encoder_.emplace((fs::path(options_.models) / "gemma-2-2b-it").string(), encoder_options());
      texts_.push_back(encoder_->encode(text));
    }
    text_seconds_ += seconds_since(start);
  }
  FrameSize own_size() const override { return {1280, 704}; }
  int64_t size_multiple() const override { return weights_->vae.config().spatial(); }

  void open(const FrameSize& size) override {
    if (encoder_) encoder_->drop_weights();
    SanaOptions o;
    o.height = size.height;
    o.width = size.width;
    o.steps = default_steps(options_.steps > 0 ? options_.steps : 4, options_.flow_shift);
    o.efficient_cache = options_.efficient_cache;
    o.seed = options_.seed;
    for (const TextEmbedding& text : texts_) {
      editors_.push_back(std::make_unique<SanaEditor>(*weights_, o));
      editors_.back()->set_text(text.rows, text.mask);
    }
  }
  int64_t chunk_frames() override { return editors_[0]->next_frames(); }
  Tensor step(size_t track, const Tensor& frames) override {
    const Tensor out = editors_[track]->step(frames);
    if (device_ == Device::cuda) held_.push_back(cuda_memory().now);
    return out;
  }
  void finish(std::ostream& to) override;

 private:
  // Algorithms of matrix products are measured once on a GPU and kept.
  static std::unique_ptr<GemmChoices> choices_of(Device device) {
    if constexpr (kHasCuda)
      if (device == Device::cuda && cuda_available()) {
        const std::string gpu = cuda::device_name();
        const int64_t version = cuda::cublaslt_version();
        return std::make_unique<GemmChoices>(GemmChoices::default_path(gpu, version), gpu, version);
      }
    return nullptr;
  }
  TextEncoderOptions encoder_options() const {
    TextEncoderOptions o;
    o.device = device_;
    if (device_ != Device::cuda) o.dtype = DType::f32;
    return o;
  }

  const EditOptions& options_;
  Device device_;
  std::unique_ptr<GemmChoices> choices_;
  std::optional<GemmScope> scope_;
  std::optional<SanaWeights> weights_;
  std::optional<TextEncoder> encoder_;
  std::vector<TextEmbedding> texts_;
  std::vector<std::unique_ptr<SanaEditor>> editors_;
  std::vector<int64_t> held_;  // bytes of GPU memory after each step
  double load_seconds_ = 0, text_seconds_ = 0;
};

// The stages of the chunks behind the first ones, which choose algorithms and fill the window.
void SanaBackend::finish(std::ostream& to) {
  std::ostringstream out;
  if (choices_) choices_->save();
  out << weights_->notes;
  out << std::fixed << std::setprecision(2) << "loaded in " << load_seconds_ << " s, text in "
      << text_seconds_ << " s\n";
  const std::vector<SanaTimes>& all = editors_[0]->times();
  constexpr size_t kWarmUp = 5;
  const size_t from = all.size() > kWarmUp ? kWarmUp : all.size() - 1;
  const auto stage = [&](const char* name, double SanaTimes::*part) {
    std::vector<double> values;
    for (size_t i = from; i < all.size(); ++i) values.push_back(all[i].*part);
    out << "  " << std::left << std::setw(8) << name << std::right << std::setw(10) << 1e3 * median(values)
        << " ms\n";
    return median(values);
  };
  const int64_t frames = editors_[0]->next_frames();
  out << "a chunk of " << frames << " frames, median of " << all.size() - from << ":\n";
  const double sum = stage("encode", &SanaTimes::encode) + stage("denoise", &SanaTimes::denoise) +
                     stage("cache", &SanaTimes::cache) + stage("decode", &SanaTimes::decode);
  out << "  " << double(frames) / sum << " FPS\n";
  if (held_.size() > from + 1)
    out << "GPU memory of tensors: " << double(held_[from]) * 1e-9 << " GB after chunk " << from + 1 << ", "
        << double(held_.back()) * 1e-9 << " GB at the end; at most " << double(cuda_memory().peak) * 1e-9
        << " GB\n";
  to << out.str();
}

}  // namespace

TextEmbedding read_text_embedding(const std::string& path) {
  const SafeTensors file(path);
  return {file.get("rows").to(DType::f32), file.get("mask").to(DType::u8)};
}

std::unique_ptr<EditBackend> open_sana_editor(const EditOptions& options) {
  return std::make_unique<SanaBackend>(options);
}

}  // namespace rivulet
