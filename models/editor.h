// Editing a stream of frames by instruction, chunk by chunk: the one call that the applications make.
#pragma once

#include "models/dpm_solver.h"
#include "models/edit_model.h"

namespace rivulet {

// Everything that an edit carries from chunk to chunk. Copy it to fork, save it to resume, drop it to reset.
struct EditState {
  StreamState stream;
  Rng noise;  // seed it before the first chunk
};

// safetensors; the metadata holds the counters. load_state checks the tensors against each other only: a
// state belongs to the model and frame size that made it, and Editor::step refuses another.
void save_state(const EditState& state, const std::string& path);
EditState load_state(const std::string& path);

// One chunk out of the network.
struct Denoised {
  Tensor latents;                    // clean ones, of the edit
  std::vector<double> pass_seconds;  // of each network call as the host sees it; the last one is the memory's
};

// The network gave values that are not finite. The state is as before the step, but for the noise drawn.
class NotFinite : public Error {
 public:
  using Error::Error;
};

class Editor {
 public:
  // A model folder of the zoo: config.json and weights.safetensors.
  static Editor load(const std::string& model_dir, Device device = Device::cpu) {
    return Editor(EditModel::load(model_dir, device));
  }
  explicit Editor(EditModel model) : model_(std::move(model)) {}

  const EditModel& model() const { return model_; }
  int64_t first_chunk_frames() const { return model_.config().first_chunk_frames; }
  int64_t chunk_frames() const { return model_.config().dit.chunk_frames; }
  // Frames that the next step() takes.
  int64_t next_chunk_frames(const EditState& state) const {
    return state.stream.chunk == 0 ? first_chunk_frames() : chunk_frames();
  }
  int64_t size_multiple() const { return model_.config().patch; }

  // Throws on an empty text and on words the model was not taught, naming them.
  Prompt encode(const std::string& text) const { return model_.prompt(text); }

  // Edits the next chunk: frames u8 [F, H, W, 3] to u8 of the same shape; H and W multiples of
  // size_multiple(), the same in every chunk of a stream. The prompt may change between chunks.
  Tensor step(const Tensor& frames, const Prompt& prompt, EditState& state,
              const SampleOptions& options = {}) const;

  // The three parts of step(), for a caller that overlaps them: only denoise() needs the chunk before.
  Tensor encode_frames(const Tensor& frames) const;  // to latents [1, C, T, h, w] on the model's device
  Denoised denoise(const Tensor& latents, const Prompt& prompt, EditState& state,
                   const SampleOptions& options = {}) const;
  Tensor decode_frames(const Tensor& latents) const;

  // A whole clip at once, every frame seeing every other: frames u8 [F, H, W, 3] to the same. For
  // bidirectional models; throws with a streaming one. Guidance leads away from the null instruction.
  Tensor edit_clip(const Tensor& frames, const Prompt& prompt, Rng& noise,
                   const ClipSampling& sampling = {}) const;

 private:
  EditModel model_;
};

}  // namespace rivulet
