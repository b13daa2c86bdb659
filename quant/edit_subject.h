// An EditModel (brook and its like) on clips, for the policy search.
#pragma once

#include "models/edit_model.h"
#include "models/flow.h"
#include "quant/subject.h"

namespace rivulet {

struct EditClip {
  SubjectClip about;
  Tensor frames;  // u8 [F, H, W, 3]; all clips of one size, cut into the model's chunks, a rest is left out
  uint64_t seed = 0;
};

// The subject owns the model. Each clip is edited once as the model is, here, to keep its memory for the
// chunks that start from it.
Subject edit_subject(EditModel model, const std::vector<EditClip>& clips, const SampleOptions& sampling);

}  // namespace rivulet
