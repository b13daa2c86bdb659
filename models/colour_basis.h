// A fixed bank of colour functions of the source picture. A network that weighs them per patch can change one
// colour among others, bend the tones or darken edges pixel by pixel, though it sees patches only.
#pragma once

#include "models/patch_codec.h"

namespace rivulet {

// Of one pixel with channels r, g, b, the ordinary selective colours: how much of each primary,
// p_r = max(r - max(g, b), 0), and of each secondary, s_y = max(min(r, g) - b, 0) and so on; they add up to
// the chroma. Taken as p^2 / chroma (a narrower band of hues) and faded out towards grey by saturation. Then
// luma^2, and d and d^2 with d = max(blur - luma, 0) / (blur + 0.08), the dark side of edges.
inline constexpr int64_t kColourFunctions = 9;

// latents [B, 3F, T, H, W] of `codec` (f32) -> [B, F, 3 + kColourFunctions, T * H * W]: the latents
// themselves, by colour, then those of the functions, in fixed mixtures of three.
Tensor colour_basis(const PatchCodec& codec, const Tensor& latents);

}  // namespace rivulet
