// Pictures of what an editor does to held samples: what a person looks at while it trains.
#pragma once

#include "models/editor.h"
#include "train/shape_edit.h"

namespace rivulet {

// A whole clip, u8 [F, H, W, 3], through the editor as a stream; frames that fill no chunk are left out.
Tensor edit_clip(const Editor& editor, const Tensor& frames, const std::string& instruction, uint64_t seed,
                 const SampleOptions& options = {});

// u8 [H, W, 3]: a row per sample with the last frame of source, edit and exact target beside each other.
Tensor sample_sheet(const Editor& editor, const std::vector<Sample>& samples, uint64_t seed);

}  // namespace rivulet
