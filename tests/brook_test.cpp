// The bundled network does what it says, on a few real frames that it was never trained on.
#include <doctest/doctest.h>

#include "models/editor.h"
#include "ops/image.h"
#include "train/edit_samples.h"
#include "train/footage.h"
#include "train/instructions.h"
#include "train/metrics.h"

using namespace rivulet;

namespace {

const Editor& brook() {
  static const Editor editor = Editor::load(std::string(RIVULET_SOURCE_DIR) + "/models/brook");
  return editor;
}

// The first clip of the tiny archive, six frames of 96x48.
Tensor frames() {
  const Footage footage =
      Footage::open(std::string(RIVULET_SOURCE_DIR) + "/tests/data/footage_tiny.safetensors");
  for (const FootageItem& item : footage.items())
    if (item.frames.dim(0) >= 6) return item.frames.slice(0, 0, 6).slice(1, 0, 48).contiguous();
  fail("the tiny archive holds no clip of six frames");
}

}  // namespace

TEST_CASE("brook follows its looks") {
  const Tensor source = frames(), pixels = u8_to_unit(source);
  for (const char* name : {"night", "sepia", "sketch", "negative"}) {
    const Edit edit = edit_named(name);
    const EditResult exact = apply_edit(pixels, edit);
    const Tensor output = u8_to_unit(edit_clip(brook(), source, canonical_instruction(edit), 3));
    CAPTURE(name);
    CHECK(edit_score(output, pixels, exact.pixels, exact.mask).value() > 0.5);
  }
}

TEST_CASE("brook leaves a clip alone when told to") {
  const Tensor source = frames();
  CHECK(psnr(u8_to_unit(edit_clip(brook(), source, "leave it alone", 3)), u8_to_unit(source)) > 35);
}

TEST_CASE("brook says which words it does not know") {
  CHECK_THROWS_WITH_AS(brook().encode("make it a dragon"), doctest::Contains("dragon"), Error);
}

TEST_CASE("brook is small") {
  const EditModel model = brook().model();
  EditModel copy = model;
  CHECK(count_elements(named_tensors(copy)) * 2 < 5'000'000);  // bytes in f16
}
