// What the stages of training ask of a network, whatever it is: the velocity of noisy latents beside their
// source, in a stream or by themselves. One model code serves as bidirectional editor (no memory), as
// streaming student (memory), as real and as fake score (training.md 0).
#pragma once

#include <functional>

#include "models/edit_model.h"

namespace rivulet {

struct NetCall {
  Tensor x, source;  // [B, C, T, h, w]
  Tensor sigma, t;  // noise level and what the network is told of it: f32 [B] or per frame [B, T], on the CPU
  const TextContext& text;
  const StreamState* past = nullptr;  // memory of the chunks before
  StreamState* next = nullptr;        // receives it with this chunk
};
using EditNet = std::function<Tensor(const NetCall&)>;
// The model must outlive what is returned.
EditNet net_of(const EditModel& model);

// One level for a whole batch.
inline Tensor levels_of(int64_t batch, double value) { return full({batch}, value); }
// (1 - sigma) x0 + sigma eps and x - sigma v, with sigma [B] or [B, T].
Tensor noised(const Tensor& x0, const Tensor& eps, const Tensor& sigma);
Tensor clean_of(const Tensor& x, const Tensor& v, const Tensor& sigma);

// Forward over a clip chunk by chunk, each chunk at its own levels sigma and t [B, T], written into the
// memory as it is: chunk j sees chunks up to j. Gradients cross the chunks. Returns v [B, C, T, h, w].
Tensor chunk_causal(const EditNet& net, const Tensor& x, const Tensor& source, const Tensor& sigma,
                    const Tensor& t, const TextContext& text, const std::vector<int64_t>& chunks);

}  // namespace rivulet
