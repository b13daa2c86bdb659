#include "train/scene.h"

#include <numbers>

#include "tensor/parallel.h"

namespace rivulet {
namespace {

constexpr float kPi = std::numbers::pi_v<float>;

// Signed distances to shapes that fit in the unit circle; negative inside.
float square_distance(float x, float y) { return std::max(std::abs(x), std::abs(y)) - 0.72f; }
float disc_distance(float x, float y) { return std::hypot(x, y) - 0.86f; }
float triangle_distance(float x, float y) { return std::max(0.866025f * std::abs(x) - 0.5f * y, y) - 0.48f; }
float ring_distance(float x, float y) { return std::abs(std::hypot(x, y) - 0.74f) - 0.17f; }
float star_distance(float x, float y) {
  // Fold the five points onto one, then measure against the line from its tip to the notch beside it.
  const float turn = 2 * kPi / 5, a = std::atan2(x, -y), folded = std::abs(a - turn * std::round(a / turn));
  const float r = std::hypot(x, y), px = r * std::sin(folded), py = r * std::cos(folded);
  const float notch = 0.42f, nx = notch * std::sin(turn / 2), ny = notch * std::cos(turn / 2);
  const float ex = nx, ey = ny - 0.95f, length = std::hypot(ex, ey);
  return (ex * (py - 0.95f) - ey * px) / length;
}

float distance_of(Kind kind, float x, float y) {
  switch (kind) {
    case Kind::square:
      return square_distance(x, y);
    case Kind::disc:
      return disc_distance(x, y);
    case Kind::triangle:
      return triangle_distance(x, y);
    case Kind::ring:
      return ring_distance(x, y);
    case Kind::star:
      return star_distance(x, y);
  }
  return 1;
}

// Bounces between `low` and `high`.
float folded(float x, float low, float high) {
  const float span = std::max(high - low, 1e-3f), m = std::fmod(x - low, 2 * span),
              p = m < 0 ? m + 2 * span : m;
  return low + (p < span ? p : 2 * span - p);
}

// A cubic Bezier curve from p[0] to p[3].
float bezier(const float p[4], float t) {
  const float s = 1 - t;
  return s * s * s * p[0] + 3 * s * s * t * p[1] + 3 * s * t * t * p[2] + t * t * t * p[3];
}

Rgb textured(const SceneObject& o, float u, float v, Rgb below) {
  const float wave = 2.6f * kPi, soft = 6 / std::max(o.size, 6.0f);
  switch (o.texture) {
    case Texture::solid:
      return o.colour;
    case Texture::stripes:
      return mix(o.second, o.colour, smoothstep(-soft, soft, std::sin(wave * u) + 0.2f));
    case Texture::checker:
      return mix(o.second, o.colour, smoothstep(-soft, soft, std::sin(wave * u) * std::sin(wave * v)));
    case Texture::tint:
      return o.colour * (0.3f + 0.85f * luma(below));
  }
  return o.colour;
}

// Paints one object with its shadow onto one frame.
void draw(const SceneObject& o, float frame, float* pixels, int64_t h, int64_t w) {
  float cx, cy;
  object_place(o, frame, float(h), float(w), cx, cy);
  const float angle = o.angle + o.spin * frame, c = std::cos(angle) / o.size, s = std::sin(angle) / o.size;
  const float drop = 1 + 0.14f * o.size, blur = 1 + 0.22f * o.size, reach = o.size + drop + blur + 1;
  const bool shadow = o.texture != Texture::tint;
  const int64_t y0 = std::max<int64_t>(0, int64_t(std::floor(cy - reach)));
  const int64_t y1 = std::min<int64_t>(h, int64_t(std::ceil(cy + reach)) + 1);
  const int64_t x0 = std::max<int64_t>(0, int64_t(std::floor(cx - reach)));
  const int64_t x1 = std::min<int64_t>(w, int64_t(std::ceil(cx + reach)) + 1);
  const auto distance = [&](float dx, float dy) {
    return o.size * distance_of(o.kind, c * dx + s * dy, c * dy - s * dx);
  };
  for (int64_t y = y0; y < y1; ++y)
    for (int64_t x = x0; x < x1; ++x) {
      const float dx = float(x) + 0.5f - cx, dy = float(y) + 0.5f - cy;
      float* p = pixels + 3 * (y * w + x);
      Rgb value = load_pixel(p);
      const float cover = clamp01(0.5f - distance(dx, dy));
      if (shadow && cover < 1)
        value = value * (1 - 0.4f * smoothstep(blur, -blur, distance(dx - drop, dy - drop)));
      if (cover > 0) {
        const float u = c * dx + s * dy, v = c * dy - s * dx, shade = 1 - 0.1f * (dx + dy) / o.size;
        value = mix(value, clamp01(textured(o, u, v, value) * shade), cover);
      }
      store_pixel(p, value);
    }
}

}  // namespace

void object_place(const SceneObject& o, float frame, float height, float width, float& x, float& y) {
  if (o.bounces) {
    const float margin = 0.6f * o.size;
    x = folded(o.x[0] + o.x[1] * frame, margin, width - margin);
    y = folded(o.y[0] + o.y[1] * frame, margin, height - margin);
  } else {
    const float t = folded(frame / o.period, 0, 1);
    x = bezier(o.x, t);
    y = bezier(o.y, t);
  }
}

Tensor render(const Scene& scene) {
  const Tensor background = scene.background.contiguous();
  check(background.dims() == 4 && background.dim(3) == 3, "scene: the background must be [F, H, W, 3], got ",
        background.shape());
  Tensor result = background.clone();
  const int64_t frames = result.dim(0), h = result.dim(1), w = result.dim(2);
  float* pixels = result.data<float>();
  parallel_for(frames, 1, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
      float* frame = pixels + 3 * f * h * w;
      for (const SceneObject& object : scene.objects) draw(object, float(f), frame, h, w);
      const float gain = mix(scene.gain0, scene.gain1, frames > 1 ? float(f) / float(frames - 1) : 0);
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x) {
          const float light = gain * (1 + scene.slope_x * (float(x) / float(w) - 0.5f) +
                                      scene.slope_y * (float(y) / float(h) - 0.5f));
          float* p = frame + 3 * (y * w + x);
          store_pixel(p, clamp01(load_pixel(p) * light));
        }
    }
  });
  return result;
}

}  // namespace rivulet
