// A synthetic scene, rendered exactly: flat shapes with antialiased edges and soft shadows that move over a
// real or made-up background. Rendering a scene twice, once changed, gives an edited pair whose difference is
// the edit and nothing else.
#pragma once

#include <vector>

#include "tensor/tensor.h"
#include "train/edit.h"
#include "train/pixel.h"

namespace rivulet {

enum class Texture { solid, stripes, checker, tint };  // tint colours what lies below, as stained glass does
inline constexpr int kTextures = 4;

// Lengths are in pixels, times in frames, angles in radians.
struct SceneObject {
  Kind kind = Kind::square;
  Texture texture = Texture::solid;
  Rgb colour, second;  // the second colour of stripes and checks
  float size = 10;     // radius of the circle around it
  float angle = 0, spin = 0;
  bool bounces = true;         // straight lines between the picture's edges, or a curve through 4 points
  float x[4] = {}, y[4] = {};  // bouncing: start at [0], velocity in [1]
  float period = 1;            // frames from the first to the last point of the curve
};

struct Scene {
  Tensor background;                 // f32 [F, H, W, 3]
  std::vector<SceneObject> objects;  // the last is in front
  // Light: gain from the first frame to the last, and how much brighter the right and the lower edge are.
  float gain0 = 1, gain1 = 1, slope_x = 0, slope_y = 0;
};

// Where the object's centre is.
void object_place(const SceneObject& object, float frame, float height, float width, float& x, float& y);
// f32 [F, H, W, 3] in [0, 1]
Tensor render(const Scene& scene);

}  // namespace rivulet
