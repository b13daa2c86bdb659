// A whole small editor in one trainable piece: instruction encoder and transformer, over fixed patch latents
// or those of a video autoencoder, as described by one config.json and stored in one weights.safetensors.
#pragma once

#include <optional>

#include "models/instruction_encoder.h"
#include "models/patch_codec.h"
#include "models/sana_streaming/dit.h"
#include "models/vocabulary.h"

namespace rivulet {

struct EditModelConfig {
  std::string name;
  DitConfig dit;
  // What the network's output u means. "velocity": v = u, as in the release. "colour_residual": the clean
  // target is predicted and v = (x - x0) / sigma. Per latent pixel, x0 = source + G basis(source) + u, where
  // the matrix G [3, 12] mixes the source's colours and some functions of them (colour_basis.h), in every
  // frequency alike; it is read from the last 36 channels of u (the highest frequencies, whose own residual
  // is 0). A change of tone or of one colour is then one small matrix instead of a residual of full rank, and
  // an untrained network copies its source.
  // "source_residual": the network predicts, at unit size, what the source does not tell of the velocity.
  // With the source s, x0 - s of mean square r^2 (`residual_std`), D = sigma^2 + (1 - sigma)^2 r^2:
  //   v = (sigma - (1 - sigma) r^2) / D (x - (1 - sigma) s) - s + r / sqrt(D) u,
  // the best linear guess from x and s and the size of its error (as in Karras et al. 2022, around the source
  // instead of 0). An untrained network copies its source; no level is weighted without bound.
  std::string prediction = "velocity";
  double residual_std = 0.5;
  int64_t patch = 8;               // PatchCodec; 0: the latents are those of a video autoencoder
  int64_t first_chunk_frames = 3;  // of a stream; later chunks have dit.chunk_frames
  int64_t instruction_tokens = 16;
  Vocabulary vocabulary;
};

EditModelConfig read_edit_model_config(Fields fields);
Json to_json(const EditModelConfig& config);

// The picture to be edited, ready for the network: once per chunk.
struct SourceLatents {
  Tensor latents;  // [B, C, T, H, W]
  Tensor basis;    // colour_basis of them; undefined where the prediction is "velocity"
};

// An instruction ready for the network.
struct Prompt {
  std::string text;
  TextContext context;
};

class EditModel {
 public:
  explicit EditModel(const EditModelConfig& config, Device device = Device::cpu);
  void initialise(Rng& rng);
  // Reads DIR/config.json and DIR/weights.safetensors.
  static EditModel load(const std::string& dir, Device device = Device::cpu);
  // The weights of a model of the same sizes, whatever its dtype and device. Bidirectional becomes streaming
  // here: where one stores the temporal taps of q and k and the other does not, the centre tap is what
  // counts, and the taps that nobody reads are 0 (training.md 2.1).
  void copy_from(EditModel& other);
  // Writes both, weights first.
  void save(const std::string& dir, DType dtype = DType::f32);

  template <class F>
  void visit(F&& f) {
    f("text", text);
    f("dit", dit);
  }

  const EditModelConfig& config() const { return config_; }
  // Of a model over patches; throws for others.
  const PatchCodec& codec() const;
  // Where the parameters are: every tensor given to the functions below must be there too.
  Device device() const { return dit.final_linear.weight.device(); }

  // Texts of a batch, as the network sees them; empty text means the null instruction. On the tape.
  TextContext encode(const std::vector<std::string>& texts) const;
  // The same for one instruction of a user: throws when it is empty or names words the model was not taught.
  Prompt prompt(const std::string& text) const;

  SourceLatents source(const Tensor& latents) const;

  // Velocity of x [B, C, T, H, W] at the level sigma of each sample or frame ([B] or [B, T], f32, with
  // t = trunc(1000 sigma) unless t is given), beside its source, in the dtype of x. past and next as in Dit.
  Tensor velocity(const Tensor& x, const SourceLatents& source, const Tensor& sigma, const Tensor& t,
                  const TextContext& text, const StreamState* past = nullptr,
                  StreamState* next = nullptr) const;
  // Writes clean latents into the memory: the pass at t = 0 after a chunk is done.
  StreamState remember(const Tensor& x0, const Tensor& source, const TextContext& text,
                       const StreamState& past) const;

  InstructionEncoder text;
  Dit dit;

 private:
  EditModelConfig config_;
  std::optional<PatchCodec> codec_;
};

}  // namespace rivulet
