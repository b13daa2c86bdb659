#include <doctest/doctest.h>

#include <filesystem>

#include "apps/commands.h"
#include "ops/image_io.h"
#include "tensor/safetensors.h"
#include "train/footage.h"

using namespace rivulet;

namespace {

const std::string kTiny = std::string(RIVULET_SOURCE_DIR) + "/tests/data/footage_tiny.safetensors";

// A folder of its own that is gone afterwards.
struct Scratch {
  std::filesystem::path path = std::filesystem::temp_directory_path() / "rivulet_data_command";
  Scratch() {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path / "film");
  }
  ~Scratch() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

// Frame i of the film is all of grey level 10 * i.
void write_film(const Scratch& dir, int frames) {
  for (int i = 0; i < frames; ++i)
    write_png(dir / ("film/" + std::to_string(100 + i) + ".png"), full({20, 32, 3}, 10 * i, DType::u8));
}

}  // namespace

TEST_CASE("pack cuts a film into clips at the asked distance and takes over archives and photos") {
  const Scratch dir;
  write_film(dir, 21);
  write_png(dir / "still.png", full({60, 50, 3}, 7, DType::u8));
  DataPackOptions o;
  o.in = {dir / "film", dir / "still.png", kTiny};
  o.out = dir / "out.safetensors";
  o.size = "32x20";
  o.licence = "CC0-1.0";
  o.origin = "made here";
  o.every = 8;
  o.burst = 4;
  CHECK(run_data_pack(o) == 0);
  const SafeTensors file(o.out);
  const Footage tiny = Footage::open(kTiny);
  CHECK(Footage::open(o.out).items().size() == tiny.items().size() + 4);
  for (int clip = 0; clip < 3; ++clip) {
    const Tensor frames = file.get("clip.film_" + std::to_string(clip));
    CHECK(frames.shape() == Shape{4, 20, 32, 3});
    for (int i = 0; i < 4; ++i) CHECK(frames.select(0, i).to_vector()[0] == 10 * (8 * clip + i));
  }
  // A portrait photo covers the size turned upright: 50 wide to 20, 60 high to 24, so 32 high needs 27 wide.
  CHECK(file.get("photo.still").shape() == Shape{1, 32, 27, 3});
  CHECK(file.metadata().at("clip.film_0.origin") == "made here");
  CHECK(file.metadata().at(tiny.items()[0].name + ".licence") == tiny.items()[0].licence);
}

TEST_CASE("pack refuses what gives no clip") {
  const Scratch dir;
  write_film(dir, 3);
  DataPackOptions o;
  o.in = {dir / "film"};
  o.out = dir / "out.safetensors";
  o.licence = "CC0-1.0";
  CHECK_THROWS_WITH_AS(run_data_pack(o), doctest::Contains("film"), Error);
  o.every = 4;
  CHECK_THROWS_WITH_AS(run_data_pack(o), doctest::Contains("every 4 frames"), Error);
  o.in = {kTiny, kTiny};
  CHECK_THROWS_WITH_AS(run_data_pack(o), doctest::Contains("twice"), Error);
  CHECK_FALSE(std::filesystem::exists(o.out));
}

TEST_CASE("preview draws a row per sample") {
  const Scratch dir;
  DataPreviewOptions o;
  o.footage = kTiny;
  o.out = dir / "sheet.png";
  o.size = "40x30";
  o.count = 3;
  CHECK(run_data_preview(o) == 0);
  CHECK(read_image(o.out).shape() == Shape{3 * 42, 6 * 40, 3});
  write_file(dir / "mix.json", R"({"looks": ["dusk"]})");
  o.mix = dir / "mix.json";
  CHECK_THROWS_WITH_AS(run_data_preview(o), doctest::Contains("dusk"), Error);
}
