// rivulet provenance: the invisible mark of a file, read over its frames.
#include <algorithm>
#include <iostream>

#include "apps/commands.h"
#include "apps/safeguards/config.h"
#include "apps/safeguards/digest.h"
#include "apps/safeguards/watermark.h"
#include "apps/video.h"

namespace rivulet {

int run_provenance(const ProvenanceOptions& options) {
  const SafeguardConfig config = load_safeguards(options.safeguards);
  const Watermark mark(config.mark.key, config.mark.psnr);
  const auto source = open_source(options.file);
  const FrameSize size = source->info().size;
  check(Watermark::fits(size), options.file, ": frames of ", size, " are too small to carry a mark");
  MarkEvidence evidence;
  while (options.frames == 0 || evidence.frames < options.frames) {
    const int64_t left = options.frames == 0 ? 16 : std::min<int64_t>(16, options.frames - evidence.frames);
    const Tensor frames = source->read(left);
    if (!frames) break;
    mark.gather(frames, evidence);
  }
  check(evidence.frames > 0, options.file, ": holds no frames");
  const auto found = mark.read(evidence);
  std::cout.precision(3);
  if (!found) {
    std::cout << "no mark of this key in " << evidence.frames << " frames\n";
    return 1;
  }
  std::cout << "payload " << hex_64(found->payload) << ", confidence " << found->confidence << ", "
            << 100 * found->bit_errors << " % of the coded bits corrected, " << evidence.frames
            << " frames\n";
  return 0;
}

}  // namespace rivulet
