#include "apps/serve/studio.h"

namespace rivulet::serve {

Studio::Studio(const PipelineOptions& options, std::function<void(int64_t, Event)> emit)
    : options_(options), emit_(std::move(emit)) {}

Studio::~Studio() {
  pipeline_.reset();
  if (cleaner_.joinable()) cleaner_.join();
}

void Studio::begin(int64_t number) {
  check(!pipeline_, "studio: something is being edited already");
  PipelineOptions options = options_;
  options.name = "live " + std::to_string(number);
  pipeline_ = std::make_unique<Pipeline>(options, [this, number](Event e) { emit_(number, std::move(e)); });
}

void Studio::end() {
  if (!pipeline_) return;
  pipeline_->stop();
  // The chunk in progress is waited for elsewhere: whoever calls has other clients to serve. Two editings
  // that end within one chunk wait for each other, so threads cannot pile up.
  if (cleaner_.joinable()) cleaner_.join();
  cleaner_ = std::thread([old = std::move(pipeline_)]() mutable { old.reset(); });
}

}  // namespace rivulet::serve
