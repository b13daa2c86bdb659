// The fast way to run a video autoencoder over a stream: causally, without gradients, one stream of one frame
// size. Results are those of VideoVae within the rounding of the dtype.
//
// A convolution finds the two frames before a call's first where they were written: every size has a pool of
// places, in which the last two frames of each convolution's input stay; the other frames lie in memory that
// all layers share. Nothing is copied or joined. What follows a convolution happens as it stores
// (ops/conv_frames.h).
#pragma once

#include <functional>

#include "models/ltx2_vae/packed_vae.h"
#include "ops/conv_frames.h"

namespace rivulet {

class VaeStream {
 public:
  struct Options {
    int64_t height = 0, width = 0;  // of the frames, multiples of config.spatial()
    int64_t most_latents = 3;       // worked on at a time; longer calls are cut
    bool encode = true, decode = true;
  };
  // `vae` must outlive the stream.
  VaeStream(const PackedVae& vae, const Options& options);

  // The next frames of the stream, pixels [T, H, W, 3], u8 or f32 in [-1, 1]: 1 + k temporal() of them first,
  // then multiples of temporal(). Gives normalised latents, f32 [1, C, T', H / spatial, W / spatial].
  Tensor encode(const Tensor& pixels);
  // The next latents of the stream; gives pixels [T', H, W, 3], u8 or f32.
  Tensor decode(const Tensor& latents, DType dtype = DType::u8);
  // Both start anew.
  void reset();

  // Bytes of the frames that are carried, and of the memory that the layers share.
  int64_t state_bytes() const;
  int64_t scratch_bytes() const { return arena_.peak(); }
  // Called with a name after each piece of work, for profiling.
  using Hook = std::function<void(const std::string& piece)>;
  void set_hook(Hook hook) { hook_ = std::move(hook); }

 private:
  // Places for frames of one size.
  struct Pool {
    int64_t height = 0, width = 0, channels = 0, readers = 0;
    Tensor store;
    std::vector<int> uses;
    int16_t take();
  };
  // What one convolution keeps: the places of its last two frames.
  struct Memory {
    size_t pool = 0;
    std::vector<int16_t> carried;
  };
  struct Half {
    const PackedHalf* packed = nullptr;
    int64_t rim = 0;
    std::vector<Pool> pools;       // of conv_in, then of the stages
    std::vector<Memory> memories;  // of the convolutions in the order in which they run
    bool started = false;
  };
  // Input of a convolution: frames to write, and all to read with those carried in front.
  struct Input {
    Frames fresh, all;
    int64_t repeated = 0;  // the first fresh frame is read so many times more
    size_t memory = 0;
  };
  class Run;

  Half make_half(const PackedHalf& packed, int64_t height, int64_t width) const;
  int64_t scratch_needed(const Half& half, int64_t frames) const;
  Tensor encode_some(const Tensor& pixels);
  Tensor decode_some(const Tensor& latents, DType dtype);

  const PackedVae& vae_;
  Options options_;
  Half encoder_, decoder_;
  Arena arena_;
  Hook hook_;
};

}  // namespace rivulet
