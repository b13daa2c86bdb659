#include "train/shape_edit.h"

#include <numeric>

#include "train/scene.h"

namespace rivulet {
namespace {

constexpr double kTurn = 6.283185307179586;

Colour any_colour(Rng& rng) { return static_cast<Colour>(rng.below(kColours)); }

// A believable paint of the colour: never the same twice.
Rgb shade_of(Colour colour, Rng& rng) {
  const auto p = paint(colour);
  const Hsv base = to_hsv({p[0], p[1], p[2]});
  return from_hsv(base.hue + float(rng.uniform(-7, 7)), float(rng.uniform(0.7, 1)),
                  float(rng.uniform(0.5, 1)));
}

// Anything else: greys, pastels, skin, wood.
Rgb any_paint(Rng& rng) {
  if (rng.uniform() < 0.55) return shade_of(any_colour(rng), rng);
  return from_hsv(float(rng.uniform(0, 360)), float(rng.uniform(0, 0.6)), float(rng.uniform(0.1, 1)));
}

// --- Backgrounds -------------------------------------------------------------------------------------------

// Two octaves of smooth random bumps over a gradient, gliding along.
Tensor made_up_background(Rng& rng, const ClipSize& size) {
  constexpr int kCells = 9;
  float bumps[2][kCells][kCells];
  for (auto& octave : bumps)
    for (auto& row : octave)
      for (float& v : row) v = float(rng.uniform(-1, 1));
  const Rgb from = any_paint(rng), to = any_paint(rng), tint = any_paint(rng);
  const float angle = float(rng.uniform(0, kTurn)), strength = float(rng.uniform(0, 0.35));
  const float vx = float(rng.uniform(-0.03, 0.03)), vy = float(rng.uniform(-0.03, 0.03));
  const auto noise = [&](int octave, float x, float y) {
    const float fx = std::floor(x), fy = std::floor(y), tx = smoothstep(0, 1, x - fx),
                ty = smoothstep(0, 1, y - fy);
    const auto cell = [](float v) { return ((int(v) % kCells) + kCells) % kCells; };
    const int x0 = cell(fx), x1 = cell(fx + 1), y0 = cell(fy), y1 = cell(fy + 1);
    const auto& b = bumps[octave];
    return mix(mix(b[y0][x0], b[y0][x1], tx), mix(b[y1][x0], b[y1][x1], tx), ty);
  };
  Tensor result({size.frames, size.height, size.width, 3});
  float* out = result.data<float>();
  const float unit = 1 / float(std::min(size.height, size.width));
  for (int64_t f = 0; f < size.frames; ++f)
    for (int64_t y = 0; y < size.height; ++y)
      for (int64_t x = 0; x < size.width; ++x, out += 3) {
        const float u = float(x) * unit, v = float(y) * unit;
        const float along =
            clamp01(0.5f + 0.6f * (std::cos(angle) * (u - 0.5f) + std::sin(angle) * (v - 0.5f)));
        const float n = noise(0, 2 * u + vx * float(f), 2 * v + vy * float(f)) +
                        0.5f * noise(1, 5 * u + vx * float(f), 5 * v + vy * float(f));
        store_pixel(out, clamp01(mix(from, to, along) + tint * (strength * n)));
      }
  return result;
}

// A change of hue, saturation, contrast and brightness over a whole clip.
struct Grade {
  Rgb row[3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
  float contrast = 1, lift = 0;

  Rgb operator()(Rgb p) const {
    const auto dot = [&](const Rgb& r) { return r.r * p.r + r.g * p.g + r.b * p.b; };
    const Rgb q{dot(row[0]), dot(row[1]), dot(row[2])};
    const auto tone = [&](float x) { return clamp01((x - 0.5f) * contrast + 0.5f + lift); };
    return {tone(q.r), tone(q.g), tone(q.b)};
  }
};

// Turns the colour plane about the grey axis and stretches it, keeping luma.
Grade make_grade(float turn, float saturation, float contrast, float lift) {
  const auto chroma = [&](Rgb p) {
    const float y = luma(p), c = saturation * std::cos(turn), s = saturation * std::sin(turn);
    // The plane's axes are B - Y and R - Y, scaled to equal length.
    const float u = 0.492f * (p.b - y), v = 0.877f * (p.r - y);
    const float u2 = c * u - s * v, v2 = s * u + c * v, r = y + v2 / 0.877f, b = y + u2 / 0.492f;
    return Rgb{r, (y - 0.299f * r - 0.114f * b) / 0.587f, b};
  };
  const Rgb x = chroma({1, 0, 0}), y = chroma({0, 1, 0}), z = chroma({0, 0, 1});
  return {{{x.r, y.r, z.r}, {x.g, y.g, z.g}, {x.b, y.b, z.b}}, contrast, lift};
}

void apply_grade(const Grade& grade, const Tensor& pixels) {
  float* p = pixels.data<float>();
  for (int64_t i = 0, n = pixels.numel(); i < n; i += 3) store_pixel(p + i, grade(load_pixel(p + i)));
}

double mean_of(const Tensor& t) {
  const float* p = t.data<float>();
  return std::accumulate(p, p + t.numel(), 0.0) / double(t.numel());
}

// Share of the first frame that has the colour.
double share_of(const Tensor& pixels, Colour colour) {
  return mean_of(colour_mask(pixels.slice(0, 0, 1), colour));
}

// --- Objects -----------------------------------------------------------------------------------------------

SceneObject random_object(Rng& rng, const ClipSize& size, Kind kind, Rgb colour) {
  const double shorter = double(std::min(size.height, size.width));
  SceneObject o;
  o.kind = kind;
  o.texture = static_cast<Texture>(rng.below(kTextures));
  o.colour = colour;
  o.second = rng.uniform() < 0.5 ? mix(colour, {1, 1, 1}, 0.85f) : colour * 0.35f;
  o.size = float(std::max(3.0, shorter * rng.uniform(0.07, 0.24)));
  o.angle = float(rng.uniform(0, kTurn));
  o.spin = rng.uniform() < 0.5 ? 0 : float(rng.uniform(-0.08, 0.08));
  o.bounces = rng.uniform() < 0.6;
  o.period = float(rng.uniform(24, 72));
  for (int i = 0; i < 4; ++i) {
    o.x[i] = float(rng.uniform(0, double(size.width)));
    o.y[i] = float(rng.uniform(0, double(size.height)));
  }
  if (o.bounces) {
    o.x[1] = float(shorter * rng.uniform(-0.03, 0.03));
    o.y[1] = float(shorter * rng.uniform(-0.03, 0.03));
  }
  return o;
}

// `count` objects of different kinds.
std::vector<SceneObject> random_objects(Rng& rng, const ClipSize& size, int count) {
  int order[kKinds];
  std::iota(order, order + kKinds, 0);
  std::vector<SceneObject> objects;
  for (int i = 0; i < count; ++i) {
    std::swap(order[i], order[i + rng.below(kKinds - i)]);
    objects.push_back(random_object(rng, size, static_cast<Kind>(order[i]), any_paint(rng)));
  }
  return objects;
}

void paint_object(SceneObject& object, Rgb colour) {
  object.colour = colour;
  object.second = mix(colour, {1, 1, 1}, 0.85f);
}

// The scene after an edit of objects[at].
Scene edited_scene(Scene scene, const Edit& edit, size_t at, Rgb colour) {
  SceneObject& object = scene.objects[at];
  if (edit.family == Family::object) {
    paint_object(object, colour);
  } else if (edit.family == Family::remove) {
    scene.objects.erase(scene.objects.begin() + std::ptrdiff_t(at));
  } else {
    SceneObject ring = object;
    ring.kind = Kind::ring;
    ring.texture = Texture::solid;
    ring.colour = colour;
    ring.size = 1.45f * object.size;
    scene.objects.insert(scene.objects.begin() + std::ptrdiff_t(at) + 1, ring);
  }
  return scene;
}

Tensor difference_mask(const Tensor& a, const Tensor& b) {
  Tensor mask({a.dim(0), a.dim(1), a.dim(2)});
  const float *p = a.data<float>(), *q = b.data<float>();
  float* out = mask.data<float>();
  for (int64_t i = 0, n = mask.numel(); i < n; ++i)
    out[i] = load_pixel(p + 3 * i) == load_pixel(q + 3 * i) ? 0.0f : 1.0f;
  return mask;
}

void random_light(Scene& scene, Rng& rng) {
  if (rng.uniform() < 0.5) return;
  scene.gain0 = float(rng.uniform(0.75, 1.2));
  scene.gain1 = scene.gain0 * float(rng.uniform(0.93, 1.07));
  scene.slope_x = float(rng.uniform(-0.3, 0.3));
  scene.slope_y = float(rng.uniform(-0.3, 0.3));
}

}  // namespace

ShapeEditConfig ShapeEditConfig::read(Fields fields) {
  ShapeEditConfig c;
  fields.optional("look", c.look, at_least(0));
  fields.optional("recolour", c.recolour, at_least(0));
  fields.optional("keep", c.keep, at_least(0));
  fields.optional("object", c.object, at_least(0));
  fields.optional("remove", c.remove, at_least(0));
  fields.optional("add", c.add, at_least(0));
  fields.optional("looks", c.looks);
  fields.optional("recolours", c.recolours);
  fields.optional("real", c.real, between(0, 1));
  fields.optional("coloured", c.coloured, between(0, 1));
  fields.optional("jitter", c.jitter, between(0, 1));
  fields.optional("seed", c.seed);
  fields.done();
  return c;
}

ShapeEdit::ShapeEdit(ShapeEditConfig config, std::shared_ptr<const Footage> footage)
    : config_(std::move(config)), footage_(std::move(footage)) {
  check(config_.look + config_.recolour + config_.keep + config_.object + config_.remove + config_.add > 0,
        "shape_edit: no family has a weight");
  check(config_.look == 0 || !config_.looks.empty(), "shape_edit: look has a weight and \"looks\" is empty");
  for (const std::string& look : config_.looks)
    check(edit_named(look).family == Family::look, "shape_edit: \"", look, "\" in \"looks\" is not a look");
  for (const std::string& name : config_.recolours) {
    recolours_.push_back(edit_named(name));
    check(recolours_.back().family == Family::recolour, "shape_edit: \"", name,
          "\" in \"recolours\" is not <colour>_to_<colour>");
  }
  if (recolours_.empty())
    for (const Edit& edit : footage_edits())
      if (edit.family == Family::recolour) recolours_.push_back(edit);
}

Edit ShapeEdit::draw_edit(Rng& rng) const {
  const double weights[kFamilies] = {config_.look,   config_.recolour, config_.keep,
                                     config_.object, config_.remove,   config_.add};
  double u = rng.uniform(0, std::accumulate(weights, weights + kFamilies, 0.0));
  int family = 0;
  for (int i = 0; i < kFamilies; ++i) {
    if (weights[i] == 0) continue;
    family = i;
    if (u < weights[i]) break;
    u -= weights[i];
  }
  const auto f = static_cast<Family>(family);
  if (f == Family::look)
    return {.family = f, .look = config_.looks[rng.below(int64_t(config_.looks.size()))]};
  if (f == Family::recolour) return recolours_[rng.below(int64_t(recolours_.size()))];
  return {.family = f};
}

Tensor ShapeEdit::background(Rng& rng, const ClipSize& size, const Edit& edit, bool coloured) const {
  if (!footage_ || rng.uniform() >= config_.real) return made_up_background(rng, size);
  const bool search = coloured && edit.family == Family::recolour && rng.uniform() < 0.7;
  const int tries = search ? 6 : 1;
  CameraPath best;
  Grade grade;
  double most = -1;
  for (int i = 0; i < tries; ++i) {
    const CameraPath path = footage_->random_path(rng, size.frames, size.height, size.width);
    Grade g;
    if (rng.uniform() < config_.jitter)
      g = make_grade(float(rng.uniform(0, kTurn)), float(rng.uniform(0.7, 1.6)),
                     float(rng.uniform(0.85, 1.2)), float(rng.uniform(-0.08, 0.08)));
    double share = 0;
    if (search) {  // a thumbnail of the first frame tells how much of the colour there is
      CameraPath small = path;
      small.scale0 = small.scale1 = path.scale0 * double(size.height) / 24;
      const Tensor thumbnail =
          footage_->render(small, 1, 24, std::max<int64_t>(1, 24 * size.width / size.height));
      apply_grade(g, thumbnail);
      // A fifth of the picture is plenty; more is no better than that.
      share = std::min(share_of(thumbnail, edit.from), 0.2);
    }
    if (share > most) {
      most = share;
      best = path;
      grade = g;
    }
  }
  const Tensor pixels = footage_->render(best, size.frames, size.height, size.width);
  apply_grade(grade, pixels);
  return pixels;
}

Sample ShapeEdit::sample(int64_t index, const ClipSize& size) const {
  check(size.frames > 0 && size.height > 0 && size.width > 0, "shape_edit: cannot make ", size.frames,
        " frames of ", size.width, "x", size.height);
  Rng rng = Rng{uint64_t(config_.seed), 0}.fork(uint64_t(index));
  Sample s;
  s.edit = draw_edit(rng);
  const bool coloured = rng.uniform() < config_.coloured;
  const bool on_object = s.edit.family >= Family::object;

  Scene scene;
  scene.background = background(rng, size, s.edit, coloured);
  const int count = int(rng.below(4));
  scene.objects = random_objects(rng, size, on_object ? std::max(count, 1) : rng.uniform() < 0.5 ? 0 : count);
  if (s.edit.family == Family::recolour && coloured && share_of(render(scene), s.edit.from) < 0.02) {
    const int more = 1 + int(rng.below(2));
    for (int i = 0; i < more; ++i)
      scene.objects.push_back(
          random_object(rng, size, static_cast<Kind>(rng.below(kKinds)), shade_of(s.edit.from, rng)));
  }
  random_light(scene, rng);

  if (on_object) {
    const size_t at = size_t(rng.below(int64_t(scene.objects.size())));
    SceneObject& object = scene.objects[at];
    s.edit.kind = object.kind;
    s.edit.from = any_colour(rng);
    s.edit.to = static_cast<Colour>((int(s.edit.from) + 1 + rng.below(kColours - 1)) % kColours);
    paint_object(object, shade_of(s.edit.from, rng));
    s.source = render(scene);
    s.target = render(edited_scene(scene, s.edit, at, shade_of(s.edit.to, rng)));
    s.mask = difference_mask(s.source, s.target);
  } else {
    s.source = render(scene);
    EditResult result = apply_edit(s.source, s.edit);
    s.target = result.pixels;
    s.mask = result.mask;
  }
  s.instruction = instruction(s.edit, rng);
  s.inverse_instruction = inverse_instruction(s.edit, rng);
  return s;
}

}  // namespace rivulet
