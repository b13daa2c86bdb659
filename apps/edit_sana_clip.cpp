// rivulet edit --model sana-streaming-2b --mode short: the bidirectional model on a clip's first frames.
#include <filesystem>
#include <optional>
#include <utility>

#include "apps/edit_backend.h"
#include "models/sana_clip.h"
#include "ops/shape.h"

namespace rivulet {
namespace {

class SanaClipBackend : public EditBackend {
 public:
  explicit SanaClipBackend(const EditOptions& o)
      : options_(o),
        device_(device_named(o.device)),
        editor_(SanaClipEditor::load(o.models, device_ == Device::cuda ? DType::bf16 : DType::f32, device_)) {
    check(o.state.empty(), "edit: --state is not kept for ", o.model);
    sampling_.shift = o.flow_shift;
    sampling_.guidance = o.guidance;
    if (o.steps > 0) sampling_.steps = o.steps;
  }
  std::string name() const override { return "sana-bidirectional-2b"; }
  void add_prompt(const std::string& text) override {
    if (!options_.text_embedding.empty()) {
      texts_.push_back(read_text_embedding(options_.text_embedding));
      sampling_.guidance = 1;  // there is no negative one
      return;
    }
    if (!encoder_) {
      TextEncoderOptions o;
      o.device = device_;
      if (device_ != Device::cuda) o.dtype = DType::f32;
      encoder_.emplace((std::filesystem::path(options_.models) / "gemma-2-2b-it").string(), o);
      negative_ = encoder_->encode_negative();
    }
    texts_.push_back(encoder_->encode(with_motion_score(text)));
  }
  FrameSize own_size() const override { return {1280, 704}; }
  int64_t size_multiple() const override { return editor_.vae.config().spatial(); }
  void open(const FrameSize&) override {
    if (encoder_) encoder_->drop_weights();
  }
  int64_t chunk_frames() override { return std::exchange(left_, 0); }
  Tensor step(size_t track, const Tensor& frames) override {
    // The last frame stands in for those that the last latent misses.
    const int64_t n = frames.dim(0), step = editor_.vae.config().temporal(),
                  missing = (step - (n - 1) % step) % step;
    Shape tail = frames.shape();
    tail[0] = missing;
    const Tensor whole = missing == 0 ? frames : cat({frames, frames.slice(0, n - 1, n).expand(tail)}, 0);
    return editor_.edit(whole, texts_[track], negative_, sampling_, options_.seed)
        .slice(0, 0, n)
        .contiguous();
  }
  void finish(std::ostream&) override {}

 private:
  const EditOptions& options_;
  Device device_;
  SanaClipEditor editor_;
  ClipSampling sampling_;
  std::optional<TextEncoder> encoder_;
  std::vector<TextEmbedding> texts_;
  TextEmbedding negative_;
  int64_t left_ = options_.frames;
};

}  // namespace

std::unique_ptr<EditBackend> open_sana_clip_editor(const EditOptions& options) {
  return std::make_unique<SanaClipBackend>(options);
}

}  // namespace rivulet
