// The bundled network does what it says, on a few real frames that it was never trained on.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

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

TEST_CASE("brook's memory cannot grow: no key weighs more than the delta rule can take back") {
  // A frame multiplies the state by I - K'BK with beta <= 1, and the trace of K'K is at most heads *
  // max(w)^2: RMSNorm leaves a mean square of w^2 over all channels, and the keys carry 1 / sqrt(D S).
  EditModel model = brook().model();
  for (const Block& block : model.dit.blocks) {
    if (block.softmax) continue;
    double largest = 0;
    for (double w : block.gdn.k_norm.weight.to_vector()) largest = std::max(largest, std::abs(w));
    CHECK(double(block.gdn.heads) * largest * largest < 2);
  }
}

TEST_CASE("a long stream stays what it was") {
  const Tensor three = frames().slice(0, 0, 3).contiguous(), pixels = u8_to_unit(three);
  const Prompt prompt = brook().encode("turn it into a pencil sketch");
  EditState state;
  Tensor early, late;
  for (int chunk = 0; chunk < 120; ++chunk) {
    const Tensor out = u8_to_unit(brook().step(three, prompt, state));
    if (chunk == 4) early = out;
    late = out;
  }
  CHECK(psnr(late, early) > 20);
}

TEST_CASE("brook is small") {
  const EditModel model = brook().model();
  EditModel copy = model;
  CHECK(count_elements(named_tensors(copy)) * 2 < 5'000'000);  // bytes in f16
}
