#include <filesystem>
#include <utility>

#include "apps/bundled.h"
#include "apps/edit_backend.h"
#include "models/editor.h"

namespace rivulet {
namespace {

class ZooEditor : public EditBackend {
 public:
  explicit ZooEditor(const EditOptions& o)
      : options_(o),
        editor_(Editor::load(o.model.empty() ? bundled_model() : o.model, device_named(o.device))) {
    const EditModelConfig& config = editor_.model().config();
    check(o.mode == "stream" || config.dit.variant == "bidirectional", "edit: '", config.name,
          "' edits streams, --mode short needs a bidirectional model");
    clip_.guidance = o.guidance;
    if (o.steps > 0) {
      sampling_.steps = default_steps(o.steps, o.flow_shift);
      clip_.steps = o.steps;
    }
  }
  std::string name() const override { return editor_.model().config().name; }
  void add_prompt(const std::string& text) override { prompts_.push_back(editor_.encode(text)); }
  int64_t size_multiple() const override { return editor_.size_multiple(); }
  void open(const FrameSize&) override {
    EditState start;
    start.noise = Rng{options_.seed};
    if (!options_.state.empty() && std::filesystem::exists(options_.state))
      start = load_state(options_.state);
    states_.assign(prompts_.size(), start);
  }
  int64_t chunk_frames() override {
    return options_.mode == "short" ? std::exchange(left_, 0) : editor_.next_chunk_frames(states_[0]);
  }
  Tensor step(size_t track, const Tensor& frames) override {
    try {
      if (options_.mode == "short")
        return editor_.edit_clip(frames, prompts_[track], states_[track].noise, clip_);
      return editor_.step(frames, prompts_[track], states_[track], sampling_);
    } catch (const NotFinite&) {
      return {};  // the guard shows the source and says so
    }
  }
  void finish(std::ostream& out) override {
    if (options_.state.empty()) return;
    save_state(states_[0], options_.state);
    out << options_.state << "\n";
  }

 private:
  const EditOptions& options_;
  Editor editor_;
  SampleOptions sampling_;
  ClipSampling clip_;
  int64_t left_ = options_.frames;  // of the short mode
  std::vector<Prompt> prompts_;
  std::vector<EditState> states_;
};

}  // namespace

std::unique_ptr<EditBackend> open_zoo_editor(const EditOptions& options) {
  return std::make_unique<ZooEditor>(options);
}

}  // namespace rivulet
