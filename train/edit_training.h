// Training an EditModel on edited pairs by flow matching, under the streaming protocol: a clip is cut into
// the chunks that inference uses, each chunk is trained with the memory that the clean chunks before it left.
#pragma once

#include <memory>

#include "models/edit_model.h"
#include "train/flow_matching.h"
#include "train/prefetch.h"
#include "train/trainer.h"

namespace rivulet {

// A pair as the network sees it.
struct EditPair {
  Tensor source, target;  // latents [1, C, F, h, w]
  std::string instruction;
};

class EditTraining {
 public:
  // pair(index) must depend on the index alone; it is called on worker threads.
  EditTraining(EditModel& model, const TrainConfig& config, std::function<EditPair(int64_t index)> pair,
               int workers = 1);

  // The loss of the next micro-batch; call in order, starting after resumption at the right one (see StepFn).
  StepLoss loss(int64_t step, int64_t micro, Rng& rng);

 private:
  EditModel& model_;
  TrainConfig config_;
  std::function<EditPair(int64_t)> pair_;
  int workers_;
  int64_t next_ = -1;  // micro-batch that the prefetcher stands at
  std::unique_ptr<Prefetch<EditPair>> ahead_;
};

// Frames of each chunk of a clip: the model's first chunk, then steady ones; a short rest is left out.
std::vector<int64_t> chunk_lengths(const EditModelConfig& config, int64_t frames);

}  // namespace rivulet
