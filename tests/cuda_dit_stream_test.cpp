// The fast stream on the GPU, eager and in graphs, against the plain transformer on the CPU in f32.
#include "dit_stream_fixtures.h"
#include "tensor/cuda.h"

using namespace rivulet;

TEST_CASE("on a GPU the stream in bf16, in graphs, is the plain transformer within rounding") {
  if (!cuda_available()) {
    MESSAGE("skipped: no GPU");
    return;
  }
  const DitConfig config = small(224, {1, 3});  // heads of 112 channels, as in the full model
  Dit dit = random_dit(config);
  const auto bounds = bounds_of(config, 5, 7);
  const Clip in = clip(config, bounds.back());
  StreamState state;
  const Tensors want = plain(dit, in, bounds, state);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    FusedDit fused(config, dtype, Device::cuda);
    fused.copy_from(dit);
    DitStream graphs(fused, options(5));
    graphs.set_text(in.text, in.mask);
    const Tensors got = fast(graphs, in, bounds);
    CHECK(graphs.replays());
    CHECK(worst_error(got, want) < (dtype == DType::f32 ? 2e-4 : 6e-2));
    DitStream::Options eager = options(5);
    eager.graphs = false;
    DitStream plainly(fused, eager);
    plainly.set_text(in.text, in.mask);
    CHECK(worst_error(fast(plainly, in, bounds), got) == 0);
  }
}
