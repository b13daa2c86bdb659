#include "train/edit_samples.h"

#include "ops/image.h"
#include "ops/shape.h"

namespace rivulet {

Tensor edit_clip(const Editor& editor, const Tensor& frames, const std::string& instruction, uint64_t seed,
                 const SampleOptions& options) {
  const Prompt prompt = editor.encode(instruction);
  EditState state;
  state.noise.seed = seed;
  Tensors edited;
  check(frames.dim(0) >= editor.first_chunk_frames(), "edit: ", frames.dim(0),
        " frames are shorter than the first chunk, ", editor.first_chunk_frames());
  for (int64_t at = 0, length; at + (length = editor.next_chunk_frames(state)) <= frames.dim(0); at += length)
    edited.push_back(editor.step(frames.slice(0, at, at + length).contiguous(), prompt, state, options));
  return cat(edited, 0);
}

Tensor sample_sheet(const Editor& editor, const std::vector<Sample>& samples, uint64_t seed) {
  Tensors rows;
  for (const Sample& sample : samples) {
    const Tensor edited = edit_clip(editor, unit_to_u8(sample.source), sample.instruction, seed);
    const int64_t last = edited.dim(0) - 1;
    rows.push_back(cat({unit_to_u8(sample.source).select(0, last), edited.select(0, last),
                        unit_to_u8(sample.target).select(0, last)},
                       1));
  }
  return cat(rows, 0);
}

}  // namespace rivulet
