// Edits of real footage whose exact result is known: whole-picture looks and recolouring by hue. They are
// what the small networks learn and what their output is measured against.
//
// Pixels are f32 [F, H, W, 3] in [0, 1]. Every edit is a continuous function of the pixels of one frame
// within kLookRadius of the place, so smooth input gives smooth output in space and time.
#pragma once

#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

inline constexpr int kLookRadius = 3;

// night, sepia, sketch, black_and_white, sunset, negative, cartoon
const std::vector<std::string>& look_names();
Tensor apply_look(const Tensor& pixels, const std::string& look);

enum class Colour { red, orange, yellow, green, blue, purple };
inline constexpr int kColours = 6;
const char* name_of(Colour colour);
Colour colour_named(const std::string& name);

// How much each pixel is of the colour, f32 [F, H, W] in [0, 1]: a soft gate on hue, one on saturation and
// one on chroma, tuned so that signs, clothes, paint and grass pass and skin, wood and grey noise do not.
Tensor colour_mask(const Tensor& pixels, Colour colour);

struct Recoloured {
  Tensor pixels, mask;  // mask is colour_mask(source, from); where it is 0 the pixels are the source's
};
// Turns the hue of everything coloured `from` to `to`. Saturation stays and luminance moves most of the way
// to what is natural for the new hue: red becomes a darker blue and a brighter yellow.
Recoloured recolour(const Tensor& pixels, Colour from, Colour to);

// A saturated colour of that name in [0, 1], as paint for synthetic things.
std::array<float, 3> paint(Colour colour);

}  // namespace rivulet
