// The fast way to run a transformer over a stream, without gradients: one stream of one frame size, batch 1,
// all of whose memory has fixed addresses. Results are those of Dit within the rounding of the dtype.
//
// Against Dit, a pass does not compute what cannot change within a stream: text keys and values are made once
// per prompt, the timestep's vectors once per step list, the source's half of the patch embedding once per
// chunk. q, k, v and gate are one product. Keys and values of the window stay where they were written. The
// pass that writes the memory leaves out what nobody reads (dit.md 8): the output head, the last temporal
// convolution, and in the last block all but the last frame behind the keys and values. On a GPU, once the
// window is full, a whole pass is one graph.
#pragma once

#include <map>

#include "models/sana_streaming/fused_dit.h"
#include "tensor/cuda_graph.h"

namespace rivulet {

class DitStream {
 public:
  struct Options {
    int64_t height = 0, width = 0;  // of the latent grid
    int64_t first_frames = 5;       // latent frames of the first chunk; later ones have dit.chunk_frames
    std::vector<double> steps = {1000, 961, 893, 743};  // t of the denoising passes
    bool graphs = true;                                 // where the device has them
    int64_t scratch_bytes = 0;                          // of one pass; 0: enough
  };
  // `model` must outlive the stream.
  DitStream(const FusedDit& model, const Options& options);

  // text [1, L, caption channels], mask [1, L] u8. Only the real tokens are kept. May change between chunks.
  void set_text(const Tensor& text, const Tensor& mask);
  // Latent frames of the next chunk, and absorbed so far.
  int64_t next_frames() const { return chunk_ == 0 ? options_.first_frames : config().chunk_frames; }
  int64_t frames() const { return frames_; }
  int64_t chunks() const { return chunk_; }

  // One chunk: begin, velocity() as often as wanted, end. Latents are [1, latent channels, T, H, W], of any
  // floating dtype and strides. What velocity() returns has the model's dtype and lives until the next call.
  void begin_chunk(const Tensor& source);
  Tensor velocity(const Tensor& x, size_t step);
  void end_chunk(const Tensor& x0);  // the cache pass
  // Forgets everything but the text.
  void reset();

  // The memory as Dit's own, copied; and back. A state must be of this model and frame size.
  StreamState state() const;
  void set_state(const StreamState& state);

  // Called with a name after each piece of an eager pass; for profiling. While set, graphs are not used.
  using Hook = std::function<void(const char* piece)>;
  void set_hook(Hook hook) { hook_ = std::move(hook); }
  bool replays() const { return !graphs_.empty(); }
  int64_t scratch_peak() const { return arena_.peak(); }

 private:
  struct Slot {
    Tensor k, v;         // [1, room, nH, D]
    int64_t frames = 0;  // filled
    int64_t chunk = -1;  // held
  };
  struct BlockMemory {
    GdnState gdn;             // f32
    std::vector<Slot> slots;  // sink first if there is one, then a ring
    Tensor tail;              // [1, S, C]
  };
  struct Work;  // one pass

  const DitConfig& config() const { return model_.dit.config(); }
  void load_rope(int64_t T);
  int64_t slot_for(int64_t chunk) const;  // -1: not kept
  void run_pass(const Tensor& x, size_t step, bool remember);
  void pass(int64_t T, bool remember, int64_t slot);
  Tensor delta_net(const Block& block, const FusedBlock& fused, BlockMemory& memory, Operand& u,
                   const Work& work) const;
  Tensor softmax(const Block& block, const FusedBlock& fused, BlockMemory& memory, Operand& u,
                 const Work& work, bool last_only) const;
  // `in` is h as the queries' product reads it; it is given up.
  Tensor cross(size_t index, const Tensor& h, Operand& in) const;
  Tensor feed_forward(size_t index, const Operand& u) const;
  // h + gate * branch (h without a branch), normed and modulated (h without a shift), and rounded as
  // `reader` reads it (null: nobody does); only that is kept when it reads alone.
  struct Normed {
    Tensor h;
    Operand u;
  };
  Normed norm(const Tensor& h, const Tensor& gate, const Tensor& branch, const Tensor& shift,
              const Tensor& scale, const PackedLayer* reader, bool alone) const;
  Tensor row(size_t block, int64_t i) const;  // of the current modulation, [1, 1, 1, C]
  void mark(const char* piece) const {
    if (hook_) hook_(piece);
  }

  const FusedDit& model_;
  Options options_;
  int64_t S_, N_;  // tokens of a frame and of the longest chunk
  int64_t chunk_ = 0, frames_ = 0, open_ = 0;
  TextContext text_;
  std::vector<BlockMemory> memory_;
  Tensor x_, source_, out_;                   // [N, c], [N, C], [N, c]
  Tensor cos_, sin_, cos_space_, sin_space_;  // [N, D/2] and [S, D/2], f32
  Tensor modulation_, step_table_;            // [depth * 6 + 2, C] and [steps + 1, ...]
  mutable Arena arena_;
  Hook hook_;
  std::map<std::vector<int64_t>, CudaGraph> graphs_;
  std::map<std::vector<int64_t>, int64_t> seen_;
};

}  // namespace rivulet
