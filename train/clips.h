// A long stream as the losses see it: clips of as many latent frames as the teacher was trained on
// (training.md 3.2 and 3.3). After the first clip a window holds new frames behind a few that are already
// there.
#pragma once

#include <functional>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

struct ClipRules {
  int64_t window = 11;  // latent frames of a clip
  int64_t fresh = 9;    // new ones in each clip after the first
  int64_t chunk = 3;    // of a steady chunk; the first of a stream takes the rest of the window as well
};

struct Clip {
  int64_t start, frames;        // its new frames in the stream
  int64_t first_chunk;          // index of its first chunk in the stream
  std::vector<int64_t> chunks;  // frames of each
};
// Every clip of a stream of at most `length` latent frames; what is left at its end is not used.
std::vector<Clip> clips_of(int64_t length, const ClipRules& rules);
// Frames of each chunk of `frames`: the rest of the division goes into the first.
std::vector<int64_t> split_clip(int64_t frames, int64_t chunk);

// Turns the latents of a stream's beginning into one latent that encodes their last picture by itself, for
// every sample: [B, C, T, h, w] to [B, C, 1, h, w]. A clip starts with such a latent, and its picture is that
// of the frame where the window begins.
using LastPicture = std::function<Tensor(const Tensor& latents)>;

// The last `rules.window` latents of a stream, as they were generated; undefined before the first clip.
struct ClipHistory {
  Tensor latents, source;
};

struct Window {
  Tensor latents, source;  // [B, C, window, h, w]
  Tensor mask;             // f32 [window]: 1 on new frames
};
// fresh and source: the new frames of a clip. Their gradients pass into the window; the overlap has none. The
// first latent of both, latents and source, is encoded anew, and `history` becomes what the next clip needs.
Window next_window(const Tensor& fresh, const Tensor& source, const ClipRules& rules, ClipHistory& history,
                   const LastPicture& last_picture);

}  // namespace rivulet
