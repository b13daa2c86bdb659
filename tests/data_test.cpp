#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "tensor/parallel.h"
#include "tensor/safetensors.h"
#include "train/metrics.h"
#include "train/pixel.h"
#include "train/scene.h"
#include "train/shape_edit.h"

using namespace rivulet;

namespace {

const std::string kTiny = std::string(RIVULET_SOURCE_DIR) + "/tests/data/footage_tiny.safetensors";

std::shared_ptr<const Footage> tiny() { return std::make_shared<const Footage>(Footage::open(kTiny)); }

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.contiguous().raw(), b.contiguous().raw(), size_t(a.bytes())) == 0;
}

std::pair<float, float> range_of(const Tensor& t) {
  const float* p = t.data<float>();
  const auto [low, high] = std::minmax_element(p, p + t.numel());
  return {*low, *high};
}

// A one-pixel video.
Tensor pixel(Rgb p) {
  Tensor t({1, 1, 1, 3});
  store_pixel(t.data<float>(), p);
  return t;
}

double mask_of(Rgb p, Colour colour) { return colour_mask(pixel(p), colour).item(); }

// Whether target equals source wherever the mask is 0, to the bit.
bool exact_outside(const Sample& s) {
  const float *p = s.source.data<float>(), *q = s.target.data<float>(), *m = s.mask.data<float>();
  for (int64_t i = 0; i < s.mask.numel(); ++i)
    if (m[i] == 0 && !(load_pixel(p + 3 * i) == load_pixel(q + 3 * i))) return false;
  return true;
}

ShapeEditConfig every_family() {
  ShapeEditConfig c;
  c.look = c.recolour = c.keep = c.object = c.remove = c.add = 1;
  c.looks = look_names();
  return c;
}

}  // namespace

TEST_CASE("text is cut into plain words") {
  CHECK(tokenize("Make it BLACK-and-white, please!") ==
        std::vector<std::string>{"make", "it", "black", "and", "white", "please"});
  CHECK(tokenize("don't") == std::vector<std::string>{"dont"});
  CHECK(tokenize("don\xe2\x80\x99t") == std::vector<std::string>{"dont"});
  CHECK(tokenize(" \t.,!") == std::vector<std::string>{});
}

TEST_CASE("a vocabulary knows other spellings and names what it does not know") {
  const Vocabulary v({"make", "the", "red", "thing", "blue", "colour", "grey", "a", "sky"});
  CHECK(v.size() == 11);
  CHECK(v.id("make") == 2);
  CHECK(v.id("things") == v.id("thing"));
  CHECK(v.id("skies") == v.id("sky"));
  CHECK(v.id("colors") == v.id("colour"));
  CHECK(v.id("gray") == v.id("grey"));
  CHECK(v.id("as") == -1);
  const Encoding e = v.encode("Make the shiny red things blue, shiny and BLUE");
  CHECK(e.ids == std::vector<int64_t>{2, 3, 4, 5, 6, 6});
  CHECK(e.unknown == std::vector<std::string>{"shiny", "and"});
  const Tensor batch = v.encode_batch({"make red blue", "xyzzy", "the the the the the"}, 4);
  CHECK(batch.to_vector() == std::vector<double>{2, 4, 6, 0, 1, 0, 0, 0, 3, 3, 3, 3});
  CHECK(Vocabulary::from_json(v.to_json(), "t").words() == v.words());
  CHECK_THROWS_WITH_AS(Vocabulary({"red", "red"}), doctest::Contains("\"red\""), Error);
  CHECK_THROWS_WITH_AS(Vocabulary({"Red"}), doctest::Contains("\"Red\""), Error);
  CHECK_THROWS_WITH_AS(Vocabulary::from_json(Json::parse("[\"a\", 3]"), "m.json"),
                       doctest::Contains("m.json"), Error);
}

TEST_CASE("the vocabulary covers every sentence, and every edit has many") {
  const Vocabulary v = instruction_vocabulary();
  MESSAGE("vocabulary of ", v.words().size(), " words");
  std::vector<Edit> edits = footage_edits();
  for (const Family family : {Family::object, Family::remove, Family::add})
    for (int k = 0; k < kKinds; ++k) {
      Edit e{.family = family};
      e.kind = static_cast<Kind>(k);
      e.from = Colour::green;
      edits.push_back(e);
    }
  std::set<std::string> used;
  const auto closed = [&](const std::string& text) {
    for (const std::string& word : tokenize(text)) used.insert(word);
    const Encoding e = v.encode(text);
    CHECK_MESSAGE(e.unknown.empty(), text);
    CHECK_MESSAGE(e.ids.size() <= 16, text);
    CHECK_MESSAGE(std::none_of(text.begin(), text.end(), [](char c) { return c >= 'A' && c <= 'Z'; }), text);
  };
  Rng rng{5};
  for (const Edit& edit : edits) {
    CAPTURE(edit.name());
    const auto list = all_instructions(edit);
    CHECK(std::set<std::string>(list.begin(), list.end()).size() >= 12);
    CHECK(list.front() == canonical_instruction(edit));
    for (const std::string& text : list) closed(text);
    for (int i = 0; i < 200; ++i) {
      closed(instruction(edit, rng));
      closed(inverse_instruction(edit, rng));
    }
  }
  for (const std::string& word : v.words()) CHECK_MESSAGE(used.count(word), word);
}

TEST_CASE("no sentence asks for two different edits") {
  std::map<std::string, std::string> meaning;
  for (const Edit& edit : footage_edits())
    for (const std::string& text : all_instructions(edit)) {
      const auto [it, fresh] = meaning.emplace(text, edit.name());
      CHECK_MESSAGE((fresh || it->second == edit.name()), text);
    }
}

TEST_CASE("edits have names that lead back to them") {
  CHECK(footage_edits().size() == 1 + look_names().size() + 30);
  for (const Edit& edit : footage_edits()) CHECK(edit_named(edit.name()).name() == edit.name());
  CHECK_THROWS_WITH_AS(edit_named("red_to_red"), doctest::Contains("red_to_red"), Error);
}

TEST_CASE("looks are continuous, stay in range and reach no further than they say") {
  const auto footage = tiny();
  Rng rng{8};
  const Tensor x = footage->crop(rng, 2, 24, 30);
  Tensor nudged = x.clone(), poked = x.clone();
  const Tensor noise = rand_uniform(x.shape(), -1e-4, 1e-4, rng);
  for (int64_t i = 0; i < x.numel(); ++i)
    nudged.data<float>()[i] = clamp01(nudged.data<float>()[i] + noise.data<float>()[i]);
  poked.select(0, 0).select(0, 12).select(0, 15).fill(1.0);
  for (const std::string& look : look_names()) {
    CAPTURE(look);
    const Tensor y = apply_look(x, look), z = apply_look(nudged, look), far = apply_look(poked, look);
    const auto [low, high] = range_of(y);
    CHECK(low >= 0);
    CHECK(high <= 1);
    CHECK(rmse(x, y) > 0.05);
    CHECK(rmse(y, z) < 3e-3);
    for (int64_t f = 0; f < 2; ++f)
      for (int64_t i = 0; i < 24; ++i)
        for (int64_t j = 0; j < 30; ++j)
          if (f != 0 || std::abs(i - 12) > kLookRadius || std::abs(j - 15) > kLookRadius)
            CHECK(same(y.select(0, f).select(0, i).select(0, j), far.select(0, f).select(0, i).select(0, j)));
  }
  CHECK_THROWS_WITH_AS(apply_look(x, "vaporwave"), doctest::Contains("vaporwave"), Error);
}

TEST_CASE("colours are recognised, skin and greys are not") {
  const Rgb examples[kColours] = {{0.80f, 0.12f, 0.10f}, {0.95f, 0.50f, 0.08f}, {0.95f, 0.85f, 0.15f},
                                  {0.25f, 0.50f, 0.15f}, {0.15f, 0.25f, 0.70f}, {0.50f, 0.20f, 0.65f}};
  const Rgb others[] = {{0.5f, 0.5f, 0.5f},    {0.85f, 0.65f, 0.55f}, {0.55f, 0.38f, 0.30f},
                        {0.95f, 0.95f, 0.90f}, {0.08f, 0.05f, 0.05f}, {0.35f, 0.36f, 0.40f}};
  for (int c = 0; c < kColours; ++c) {
    const auto colour = static_cast<Colour>(c);
    CAPTURE(std::string(name_of(colour)));
    for (int e = 0; e < kColours; ++e)
      CHECK(mask_of(examples[e], colour) == doctest::Approx(e == c ? 1 : 0).epsilon(0.02));
    const auto p = paint(colour);
    CHECK(mask_of({p[0], p[1], p[2]}, colour) == 1);
    for (const Rgb& other : others) CHECK(mask_of(other, colour) < 0.01);
    CHECK(colour_named(name_of(colour)) == colour);
  }
}

TEST_CASE("recolouring turns what it selects and leaves the rest alone") {
  const auto footage = tiny();
  Rng rng{4};
  const Tensor x = footage->crop(rng, 2, 32, 48);
  for (int from = 0; from < kColours; ++from)
    for (int to = 0; to < kColours; ++to) {
      const auto a = static_cast<Colour>(from), b = static_cast<Colour>(to);
      CAPTURE(std::string(name_of(a)));
      CAPTURE(std::string(name_of(b)));
      const Recoloured r = recolour(x, a, b);
      CHECK(same(r.mask, colour_mask(x, a)));
      CHECK(exact_outside({x, r.pixels, r.mask, "", "", {}}));
      const auto p = paint(a);
      const Tensor painted = recolour(pixel({p[0], p[1], p[2]}), a, b).pixels;
      CHECK(mask_of(load_pixel(painted.data<float>()), b) > 0.6);
      if (from != to) CHECK(mask_of(load_pixel(painted.data<float>()), a) == 0);
    }
}

TEST_CASE("keep returns the very same pixels") {
  Rng rng{4};
  const Tensor x = rand_uniform({2, 5, 6, 3}, 0, 1, rng);
  const EditResult r = apply_edit(x, {.family = Family::keep});
  CHECK(same(r.pixels, x));
  CHECK(range_of(r.mask) == std::pair<float, float>(0, 0));
  CHECK_THROWS_AS(apply_edit(x, {.family = Family::remove}), Error);
}

TEST_CASE("footage: a still camera at scale 1 copies pixels, clips turn back at their ends") {
  const Footage footage = *tiny();
  int64_t item = 0;
  while (footage.items()[item].name != "clip.city") ++item;
  const Tensor& frames = footage.items()[item].frames;
  CameraPath path{.item = item, .start = 4};
  path.x0 = path.x1 = 48;
  path.y0 = path.y1 = 27;
  const Tensor out = footage.render(path, 4, 54, 96);  // frames 4, 5, 4, 3
  const int64_t order[] = {4, 5, 4, 3};
  for (int64_t f = 0; f < 4; ++f)
    for (int64_t i = 0; i < 54 * 96 * 3; ++i)
      REQUIRE(out.data<float>()[f * 54 * 96 * 3 + i] * 255 ==
              doctest::Approx(frames.data<uint8_t>()[order[f] * 54 * 96 * 3 + i]).epsilon(1e-3));
  path.mirrored = true;
  const Tensor mirrored = footage.render(path, 1, 54, 96);
  CHECK(mirrored.data<float>()[0] == out.data<float>()[95 * 3]);
}

TEST_CASE("footage: random windows stay inside the pictures") {
  const Footage footage = *tiny();
  Rng rng{11};
  std::set<int64_t> seen;
  for (int i = 0; i < 300; ++i) {
    const int64_t h = 1 + rng.below(70), w = 1 + rng.below(120);
    const CameraPath p = footage.random_path(rng, 5, h, w);
    seen.insert(p.item);
    const Tensor& f = footage.items()[p.item].frames;
    for (const auto& [x, y, s] : {std::tuple(p.x0, p.y0, p.scale0), std::tuple(p.x1, p.y1, p.scale1)}) {
      CHECK(x - s * double(w) / 2 >= -1e-9);
      CHECK(y - s * double(h) / 2 >= -1e-9);
      CHECK(x + s * double(w) / 2 <= double(f.dim(2)) + 1e-9);
      CHECK(y + s * double(h) / 2 <= double(f.dim(1)) + 1e-9);
    }
  }
  CHECK(seen.size() == footage.items().size());
  const auto [low, high] = range_of(footage.crop(rng, 3, 17, 23));
  CHECK(low >= 0);
  CHECK(high <= 1);
}

TEST_CASE("footage: archives that are none are refused by name") {
  const std::string path =
      (std::filesystem::temp_directory_path() / "rivulet_bad_footage.safetensors").string();
  const Tensor picture = zeros({1, 4, 4, 3}, DType::u8);
  const std::map<std::string, std::string> about = {{"photo.a.origin", "x"}, {"photo.a.licence", "CC0-1.0"}};
  const auto refused = [&](const std::map<std::string, Tensor>& tensors,
                           const std::map<std::string, std::string>& metadata, const char* text) {
    save_safetensors(path, tensors, metadata);
    CHECK_THROWS_WITH_AS(Footage::open(path), doctest::Contains(text), Error);
  };
  refused({}, {}, "no clips");
  refused({{"photo.a", picture}}, {}, "photo.a.origin");
  refused({{"weights", picture}}, about, "weights");
  refused({{"photo.a", zeros({4, 4, 3}, DType::u8)}}, about, "photo.a");
  refused({{"photo.a", zeros({1, 4, 4, 3})}}, about, "photo.a");
  save_footage(path, {{"photo.a", "x", "CC0-1.0", picture}});
  CHECK(Footage::open(path).items()[0].licence == "CC0-1.0");
  std::filesystem::remove(path);
}

TEST_CASE("a sample depends on the seed and its index alone") {
  const auto footage = tiny();
  const ClipSize size{3, 24, 40};
  ShapeEditConfig config = every_family();
  const ShapeEdit one(config, footage), again(config, tiny());
  config.seed = 1;
  const ShapeEdit other(config, footage);
  const int threads = num_threads();
  int different = 0;
  for (int64_t i = 11; i >= 0; --i) {
    set_threads(1 + int(i % 3));
    const Sample a = one.sample(i, size), b = again.sample(i, size);
    CHECK(same(a.source, b.source));
    CHECK(same(a.target, b.target));
    CHECK(same(a.mask, b.mask));
    CHECK(a.instruction == b.instruction);
    CHECK(a.inverse_instruction == b.inverse_instruction);
    CHECK(a.edit.name() == b.edit.name());
    different += !same(a.source, other.sample(i, size).source);
  }
  set_threads(threads);
  CHECK(different == 12);
}

TEST_CASE("samples of every family: in range, exact outside the mask, changed inside") {
  const Vocabulary v = instruction_vocabulary();
  for (const auto& footage : {tiny(), std::shared_ptr<const Footage>()}) {
    const ShapeEdit data(every_family(), footage);
    std::set<std::string> families;
    for (int64_t i = 0; i < 120; ++i) {
      const Sample s = data.sample(i, {2, 30, 41});
      CAPTURE(i);
      CAPTURE(s.instruction);
      families.insert(name_of(s.edit.family));
      CHECK(s.source.shape() == Shape{2, 30, 41, 3});
      CHECK(s.mask.shape() == Shape{2, 30, 41});
      for (const Tensor* t : {&s.source, &s.target, &s.mask}) {
        const auto [low, high] = range_of(*t);
        CHECK(low >= 0);
        CHECK(high <= 1);
      }
      CHECK(exact_outside(s));
      if (s.edit.family == Family::keep) CHECK(same(s.source, s.target));
      if (s.edit.family == Family::look) CHECK_FALSE(same(s.source, s.target));
      CHECK(v.encode(s.instruction).unknown.empty());
      CHECK(v.encode(s.inverse_instruction).unknown.empty());
    }
    CHECK(families.size() == kFamilies);
  }
}

TEST_CASE("coloured recolour samples hold the colour") {
  ShapeEditConfig config;
  config.look = config.keep = 0;
  config.coloured = 1;
  const ShapeEdit data(config, tiny());
  int holding = 0;
  for (int64_t i = 0; i < 60; ++i) {
    const Tensor mask = data.sample(i, {2, 32, 40}).mask;
    double sum = 0;
    for (const double m : mask.to_vector()) sum += m;
    holding += sum > 0.002 * double(mask.numel());
  }
  CHECK(holding >= 54);
}

TEST_CASE("an object edit changes its object and its shadow only") {
  Scene scene;
  scene.background = full({1, 40, 60, 3}, 0.5);
  SceneObject disc;
  disc.kind = Kind::disc;
  disc.colour = {0.8f, 0.1f, 0.1f};
  disc.size = 8;
  disc.x[0] = 20;
  disc.y[0] = 15;
  scene.objects = {disc};
  const Tensor with = render(scene);
  scene.objects.clear();
  CHECK(same(render(scene), scene.background));
  const auto at = [&](int64_t y, int64_t x) { return load_pixel(with.data<float>() + 3 * (y * 60 + x)); };
  CHECK(at(14, 19).r == doctest::Approx(0.8).epsilon(0.02));  // the middle
  CHECK(at(14, 19).g == doctest::Approx(0.1).epsilon(0.02));
  CHECK(at(21, 25).r < 0.45f);  // its shadow, down to the right
  CHECK(at(14, 40) == Rgb{0.5f, 0.5f, 0.5f});
  CHECK(at(35, 19) == Rgb{0.5f, 0.5f, 0.5f});
}

TEST_CASE("the renderer's configuration is read strictly") {
  const auto read = [](const char* text) {
    return ShapeEditConfig::read(Fields(Json::parse(text), "a.json"));
  };
  CHECK(read("{}").look == 0.45);
  CHECK(read(R"({"looks": ["night"], "remove": 2})").remove == 2);
  CHECK_THROWS_WITH_AS(read(R"({"loks": 1})"), doctest::Contains("loks"), Error);
  CHECK_THROWS_WITH_AS(read(R"({"real": 1.5})"), doctest::Contains("real"), Error);
  CHECK_THROWS_WITH_AS(read(R"({"look": -1})"), doctest::Contains("look"), Error);
  CHECK_THROWS_WITH_AS(ShapeEdit(read(R"({"looks": ["dusk"]})")), doctest::Contains("dusk"), Error);
  CHECK_THROWS_WITH_AS(ShapeEdit(read(R"({"recolours": ["night"]})")), doctest::Contains("night"), Error);
  CHECK_THROWS_AS(ShapeEdit(read(R"({"look": 0, "recolour": 0, "keep": 0})")), Error);
}
