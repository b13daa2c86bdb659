// What stands between the convolutions of a video autoencoder at inference, on frames in place
// (ops/conv_frames.h): pixels to patches and back, and the ways past the samplers' convolutions (vae_text.md
// 2.5 to 2.7). f32 on the CPU, bf16 on the GPU; pixels are f32 in [-1, 1] or u8 on both. No gradients.
#pragma once

#include "ops/conv_frames.h"

namespace rivulet {

// pixels [T, H p, W p, 3] to frames [H, W, 3 p^2]: channel (c p + dx) p + dy. u8 becomes v / 127.5 - 1.
void patch_frames(const Tensor& pixels, int64_t p, const Frames& to);
// And back; u8 is 127.5 v + 127.5, cut to 0 .. 255 and rounded down.
void unpatch_frames(const Frames& x, int64_t p, const Tensor& pixels);

// Dense `out` [T', H', W', C'] of blocks of x: element (dt, dh, dw) of a block and channel c count as index
// i = c cells + cell, and channel o of out is the mean of the g = C cells / C' indices from o g on. Channel c of
// x lies at position[c] (i32 [C] on x's device); channel o of out goes where FramesConv::Move::to_depth with
// C' / cells channels puts it.
void skip_to_depth(const Frames& x, const Tensor& position, const BlockSize& block, const Tensor& out);
// Dense `out` [T st - drop, H sh, W sw, C']: channel o is channel (o mod C / cells) of depth to space of x,
// whose channel c cells + cell goes to channel c of that cell. C is a multiple of cells, C' of C / cells.
void skip_to_space(const Frames& x, const BlockSize& block, int64_t drop, const Tensor& out);

KERNELS(void patch_frames(const Tensor& pixels, int64_t p, const Frames& to);
        void unpatch_frames(const Frames& x, int64_t p, const Tensor& pixels);
        void skip_to_depth(const Frames& x, const Tensor& position, const BlockSize& block, const Tensor& out);
        void skip_to_space(const Frames& x, const BlockSize& block, int64_t drop, const Tensor& out);)

}  // namespace rivulet
