#include "train/looks.h"

#include "tensor/parallel.h"
#include "train/pixel.h"

namespace rivulet {
namespace {

void check_pixels(const Tensor& pixels, const char* who) {
  check(pixels.dims() == 4 && pixels.dim(3) == 3 && pixels.dtype() == DType::f32, who,
        ": needs f32 pixels [F, H, W, 3], got ", pixels.dtype(), " ", pixels.shape());
}

Rgb night(Rgb p) {
  const float l = luma(p);
  const Rgb muted = mix({l, l, l}, p, 0.55f);
  const auto dim = [](float x) { return 0.66f * x * std::sqrt(std::max(x, 0.0f)); };
  const Rgb moonlit = Rgb{dim(muted.r), dim(muted.g), dim(muted.b)} * Rgb{0.52f, 0.76f, 1.22f};
  // The brightest things keep a little of their own light.
  return moonlit + Rgb{0.012f, 0.018f, 0.045f} + p * (0.22f * smoothstep(0.72f, 1.05f, l));
}

Rgb sepia(Rgb p) {
  const float l = luma(p);
  const float s = mix(l, l * l * (3 - 2 * l), 0.25f);
  return {0.06f + 0.94f * std::pow(s, 0.82f), 0.04f + 0.90f * s, 0.03f + 0.76f * std::pow(s, 1.2f)};
}

Rgb black_and_white(Rgb p) {
  const float l = luma(p), s = mix(l, l * l * (3 - 2 * l), 0.6f);
  return {s, s, s};
}

Rgb sunset(Rgb p) {
  const float l = luma(p);
  // Shadows go to plum, the middle to burnt orange, lights to gold.
  const Rgb plum{0.13f, 0.06f, 0.14f}, ember{0.84f, 0.36f, 0.24f}, gold{1.0f, 0.88f, 0.55f};
  const Rgb grade = l < 0.5f ? mix(plum, ember, 2 * l) : mix(ember, gold, 2 * l - 1);
  const Rgb rich = clamp01(mix({l, l, l}, p, 1.15f));
  const Rgb warm{std::pow(rich.r, 0.85f), 0.86f * std::pow(rich.g, 1.05f), 0.66f * std::pow(rich.b, 1.1f)};
  return mix(warm, grade, 0.45f);
}

Rgb negative(Rgb p) { return {1 - p.r, 1 - p.g, 1 - p.b}; }

template <class F>
Tensor map_pixels(const Tensor& pixels, F&& f) {
  const Tensor x = pixels.contiguous();
  Tensor y = empty_like(x);
  const float* in = x.data<float>();
  float* out = y.data<float>();
  parallel_for(x.numel() / 3, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) store_pixel(out + 3 * i, clamp01(f(load_pixel(in + 3 * i))));
  });
  return y;
}

// Luma of one frame blurred by a 7-tap Gaussian of sigma 1.6 both ways, edges repeated.
std::vector<float> blurred(const std::vector<float>& grey, int64_t h, int64_t w) {
  constexpr float kTap[kLookRadius + 1] = {0.2613f, 0.2150f, 0.1197f, 0.03465f};
  std::vector<float> across(grey.size()), result(grey.size());
  const auto pass = [&](const std::vector<float>& in, std::vector<float>& out, int64_t dy, int64_t dx) {
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x) {
        float sum = kTap[0] * in[y * w + x];
        for (int64_t k = 1; k <= kLookRadius; ++k) {
          const int64_t y0 = std::max<int64_t>(y - k * dy, 0), y1 = std::min(y + k * dy, h - 1);
          const int64_t x0 = std::max<int64_t>(x - k * dx, 0), x1 = std::min(x + k * dx, w - 1);
          sum += kTap[k] * (in[y0 * w + x0] + in[y1 * w + x1]);
        }
        out[y * w + x] = sum;
      }
  };
  pass(grey, across, 0, 1);
  pass(across, result, 1, 0);
  return result;
}

// Colour dodge of the luma over its blurred inverse, with a smooth ceiling: 1 on flat ground and on the
// light side of edges, below it on the dark side. The offset keeps noise in shadows from turning into
// strokes.
float pencil(float l, float blur) {
  constexpr float kSoft = 0.02f;
  const float excess = (l + 0.08f) / (blur + 0.08f) - 1;
  return clamp01(1 + 0.5f * (excess + kSoft - std::sqrt(excess * excess + kSoft * kSoft)));
}

// f(pixel, luma, blurred luma) on every pixel.
template <class F>
Tensor map_with_blur(const Tensor& pixels, F&& f) {
  const Tensor x = pixels.contiguous();
  Tensor y = empty_like(x);
  const int64_t h = x.dim(1), w = x.dim(2), frame = h * w;
  const float* in = x.data<float>();
  float* out = y.data<float>();
  parallel_for(x.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * frame; i < end * frame; i += frame) {
      std::vector<float> grey(frame);
      for (int64_t j = 0; j < frame; ++j) grey[j] = luma(load_pixel(in + 3 * (i + j)));
      const std::vector<float> blur = blurred(grey, h, w);
      for (int64_t j = 0; j < frame; ++j)
        store_pixel(out + 3 * (i + j), clamp01(f(load_pixel(in + 3 * (i + j)), grey[j], blur[j])));
    }
  });
  return y;
}

Rgb sketch(Rgb, float l, float blur) {
  const float line = pencil(l, blur);
  const float shade = mix(0.62f, 1.0f, smoothstep(0.0f, 0.6f, blur));
  return Rgb{0.985f, 0.975f, 0.955f} * (line * line * line * shade);
}

Rgb cartoon(Rgb p, float l, float blur) {
  // Luma in four soft steps, richer colour, darkened edges.
  constexpr float kSteps = 5;
  const float s = l * kSteps, base = std::floor(s);
  const float stepped = (base + smoothstep(0.2f, 0.8f, s - base)) / kSteps;
  const float gain = (mix(l, stepped, 0.9f) * 0.92f + 0.08f + 0.02f) / (l + 0.02f);
  const Rgb rich = mix({l, l, l}, p, 1.5f) * gain;
  const float line = pencil(l, blur);
  return clamp01(rich) * (line * line * line);
}

// Hue interval (degrees) where the colour is full and where it has faded out, then the saturations and
// chromas between which the gate opens.
struct Gate {
  const char* name;
  float fade_in, full_from, full_to, fade_out;
  float s0, s1, c0, c1;
  float target;  // the hue painted when this is the new colour
};
constexpr Gate kGates[kColours] = {
    {"red", -34, -20, 10, 18, 0.34f, 0.52f, 0.10f, 0.22f, 0},
    {"orange", 9, 17, 34, 43, 0.54f, 0.74f, 0.26f, 0.42f, 26},
    {"yellow", 35, 44, 60, 70, 0.38f, 0.56f, 0.20f, 0.36f, 51},
    {"green", 60, 72, 160, 174, 0.22f, 0.38f, 0.07f, 0.17f, 122},
    {"blue", 182, 198, 244, 260, 0.24f, 0.46f, 0.10f, 0.22f, 220},
    {"purple", 246, 260, 312, 328, 0.26f, 0.42f, 0.10f, 0.20f, 281},
};

// Degrees from the middle of the gate, in (-180, 180].
float hue_offset(const Gate& gate, float hue) {
  float d = hue - 0.5f * (gate.full_from + gate.full_to);
  if (d > 180) d -= 360;
  if (d <= -180) d += 360;
  return d;
}

float gate_of(const Gate& gate, const Hsv& c) {
  const float middle = 0.5f * (gate.full_from + gate.full_to), d = hue_offset(gate, c.hue);
  return smoothstep(gate.fade_in - middle, gate.full_from - middle, d) *
         (1 - smoothstep(gate.full_to - middle, gate.fade_out - middle, d)) *
         smoothstep(gate.s0, gate.s1, c.saturation) * smoothstep(gate.c0, gate.c1, c.chroma);
}

// Moves p's luma to `target`: darker by scaling, lighter by adding white.
Rgb with_luma(Rgb p, float target) {
  const float l = luma(p);
  return target <= l ? p * (target / std::max(l, 1e-6f)) : mix(p, {1, 1, 1}, (target - l) / (1 - l));
}

Rgb repaint(Rgb p, const Hsv& c, const Gate& from, const Gate& to) {
  const float spread = std::clamp(0.3f * hue_offset(from, c.hue), -8.0f, 8.0f);
  const Rgb turned = from_hsv(to.target + spread, c.saturation, c.value);
  return with_luma(turned, mix(luma(p), luma(turned), 0.7f));
}

}  // namespace

const std::vector<std::string>& look_names() {
  static const std::vector<std::string> names = {"night",  "sepia",    "sketch", "black_and_white",
                                                 "sunset", "negative", "cartoon"};
  return names;
}

Tensor apply_look(const Tensor& pixels, const std::string& look) {
  check_pixels(pixels, "apply_look");
  if (look == "night") return map_pixels(pixels, night);
  if (look == "sepia") return map_pixels(pixels, sepia);
  if (look == "sketch") return map_with_blur(pixels, sketch);
  if (look == "black_and_white") return map_pixels(pixels, black_and_white);
  if (look == "sunset") return map_pixels(pixels, sunset);
  if (look == "negative") return map_pixels(pixels, negative);
  if (look == "cartoon") return map_with_blur(pixels, cartoon);
  fail("apply_look: there is no look \"", look, "\"");
}

const char* name_of(Colour colour) { return kGates[static_cast<int>(colour)].name; }

Colour colour_named(const std::string& name) {
  for (int i = 0; i < kColours; ++i)
    if (name == kGates[i].name) return static_cast<Colour>(i);
  fail("colour: \"", name, "\" is not one of red, orange, yellow, green, blue, purple");
}

Tensor colour_mask(const Tensor& pixels, Colour colour) {
  check_pixels(pixels, "colour_mask");
  const Tensor x = pixels.contiguous();
  Tensor mask({x.dim(0), x.dim(1), x.dim(2)});
  const float* in = x.data<float>();
  float* out = mask.data<float>();
  const Gate& gate = kGates[static_cast<int>(colour)];
  parallel_for(mask.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = gate_of(gate, to_hsv(load_pixel(in + 3 * i)));
  });
  return mask;
}

Recoloured recolour(const Tensor& pixels, Colour from, Colour to) {
  check_pixels(pixels, "recolour");
  const Tensor x = pixels.contiguous();
  Recoloured result{x.clone(), Tensor({x.dim(0), x.dim(1), x.dim(2)})};
  const float* in = x.data<float>();
  float* out = result.pixels.data<float>();
  float* mask = result.mask.data<float>();
  const Gate &source = kGates[static_cast<int>(from)], &target = kGates[static_cast<int>(to)];
  parallel_for(result.mask.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Rgb p = load_pixel(in + 3 * i);
      const Hsv c = to_hsv(p);
      mask[i] = gate_of(source, c);
      if (mask[i] > 0) store_pixel(out + 3 * i, clamp01(mix(p, repaint(p, c, source, target), mask[i])));
    }
  });
  return result;
}

std::array<float, 3> paint(Colour colour) {
  const Rgb p = from_hsv(kGates[static_cast<int>(colour)].target, 0.85f, 0.9f);
  return {p.r, p.g, p.b};
}

}  // namespace rivulet
