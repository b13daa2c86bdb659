// A network that answers by formula and writes down every call: what a stage of training asks, in which
// order.
#pragma once

#include "train/edit_net.h"

namespace rivulet {

struct Asked {
  Tensor x, source, sigma, t;
  const TextContext* text;
  Tensor text_mask;  // its mask
  int64_t past_chunk, past_frames;
  bool writes, graded;
};

class Recorder {
 public:
  // v = answer(call).
  explicit Recorder(std::function<Tensor(const NetCall&)> answer) : answer_(std::move(answer)) {}

  EditNet net() {
    return [this](const NetCall& c) {
      calls.push_back({c.x.detach(), c.source.detach(), c.sigma, c.t, &c.text, c.text.mask, c.past ? c.past->chunk : -1,
                       c.past ? c.past->frames : -1, c.next != nullptr, grad_enabled()});
      if (c.next) {
        *c.next = c.past ? *c.past : StreamState{};
        c.next->chunk += 1;
        c.next->frames += c.x.dim(2);
      }
      return answer_(c);
    };
  }
  std::vector<Asked> calls;

 private:
  std::function<Tensor(const NetCall&)> answer_;
};

inline double largest_difference(const Tensor& a, const Tensor& b) {
  check(a.shape() == b.shape(), "largest_difference: ", a.shape(), " and ", b.shape());
  const auto x = a.detach().to_vector(), y = b.detach().to_vector();
  double most = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = x[i] > y[i] ? x[i] - y[i] : y[i] - x[i];
    if (!(d <= most)) most = d;
  }
  return most;
}

// An editor over latents of 4 channels: a delta-net block between two softmax ones. Weights are random all
// over, the output layer and the temporal taps included.
inline EditModelConfig tiny_latent_config(const std::string& variant = "streaming") {
  EditModelConfig c;
  c.name = "tiny";
  c.dit.variant = variant;
  c.dit.depth = 3;
  c.dit.width = 24;
  c.dit.heads = 2;
  c.dit.softmax_blocks = {0, 2};
  c.dit.latent_channels = 4;
  c.dit.caption_channels = 8;
  c.prediction = "velocity";
  c.patch = 0;
  c.first_chunk_frames = 5;
  c.instruction_tokens = 3;
  c.vocabulary = Vocabulary({"blue", "keep", "make", "red"});
  return c;
}

inline void fill_random(EditModel& model, uint64_t seed) {
  const NoGrad off;
  Rng rng{seed};
  model.initialise(rng);
  for_each_tensor(
      model, [&](const std::string&, Tensor& t) { t.detach().add_in_place(randn(t.shape(), rng), 0.1); });
}

}  // namespace rivulet
