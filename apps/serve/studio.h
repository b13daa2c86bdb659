// The editing behind a session: one pipeline per editor, put away when the editor leaves.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "apps/serve/pipeline.h"
#include "apps/serve/session.h"

namespace rivulet::serve {

class Studio : public EditControl {
 public:
  // `emit` gets the number of the editing with each event, from any thread.
  Studio(const PipelineOptions& options, std::function<void(int64_t, Event)> emit);
  ~Studio() override;

  void begin(int64_t number) override;
  void frame(SourceFrame frame) override { pipeline_->frame(std::move(frame)); }
  void instruct(const Instruct& instruction) override { pipeline_->instruct(instruction); }
  void apply(const Settings& settings) override { pipeline_->apply(settings); }
  void protect(std::vector<Region> regions) override { pipeline_->protect(std::move(regions)); }
  void reset() override { pipeline_->reset(); }
  void end() override;

 private:
  const PipelineOptions options_;
  const std::function<void(int64_t, Event)> emit_;
  std::unique_ptr<Pipeline> pipeline_;  // there between begin() and end()
  std::thread cleaner_;                 // waits for the last chunk of the one before
};

}  // namespace rivulet::serve
