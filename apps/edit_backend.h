// What edits the frames of `rivulet edit`: a small network of the zoo, or SANA-Streaming as published.
#pragma once

#include <memory>
#include <ostream>

#include "apps/commands.h"
#include "apps/frames.h"
#include "models/text_encoder.h"

namespace rivulet {

class EditBackend {
 public:
  virtual ~EditBackend() = default;
  virtual std::string name() const = 0;
  // Each prompt is a track of its own. Throws on one that the network cannot take.
  virtual void add_prompt(const std::string& text) = 0;
  virtual FrameSize own_size() const { return {}; }  // what it was made for; {0, 0}: any
  virtual int64_t size_multiple() const = 0;
  // Once, after the prompts: frames will have this size.
  virtual void open(const FrameSize&) {}
  // Frames of the next chunk, asked once for each; 0: no more.
  virtual int64_t chunk_frames() = 0;
  // u8 [F, H, W, 3] to the same, F being chunk_frames(), or in the short mode at most that; undefined when
  // the network failed on this chunk alone. Every track is asked once for every chunk.
  virtual Tensor step(size_t track, const Tensor& frames) = 0;
  // After the last chunk: what is to be kept, and a few lines about the run.
  virtual void finish(std::ostream& out) = 0;
};

std::unique_ptr<EditBackend> open_zoo_editor(const EditOptions& options);
std::unique_ptr<EditBackend> open_sana_editor(const EditOptions& options);
std::unique_ptr<EditBackend> open_sana_clip_editor(const EditOptions& options);

// Rows and mask of a safetensors file: what a text encoder gave, or whoever tries a network without one.
TextEmbedding read_text_embedding(const std::string& path);

}  // namespace rivulet
