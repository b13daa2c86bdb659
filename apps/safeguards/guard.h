// The safeguards of one program and of one stream, as `rivulet edit` and `rivulet serve` use them.
//
//   Safeguards safeguards(load_safeguards(path));             // once
//   safeguards.admit(instruction, "session 7");               // per instruction; throws Refused
//   StreamGuard guard(safeguards, {.name = "session 7", ...});  // per stream
//   guard.look_at_source(frames);                              // per chunk, throws Refused
//   GuardedFrames g = guard.apply(source, edit, seconds_per_frame);
//   show g.frames; tell the viewer g.alarms
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/frames.h"
#include "apps/safeguards/audit.h"
#include "apps/safeguards/config.h"
#include "apps/safeguards/monitor.h"
#include "apps/safeguards/screen.h"
#include "apps/safeguards/watermark.h"
#include "tensor/tensor.h"

namespace rivulet {

// A safeguard said no. The text is for the person who asked, and names the rule.
class Refused : public Error {
 public:
  Refused(std::string rule, const std::string& text) : Error(text), rule_(std::move(rule)) {}
  const std::string& rule() const { return rule_; }  // "violence/behead*", "source/marked"

 private:
  std::string rule_;
};

class Safeguards {
 public:
  explicit Safeguards(SafeguardConfig config);

  // Throws Refused when the screen or the classifier does not let the instruction pass. Both outcomes are
  // logged under `who`. Any thread. May take as long as the classifier's time limit.
  void admit(const std::string& instruction, const std::string& who) const;
  // One entry of the audit log, when there is one. Any thread.
  void log(const std::string& event, const Json& facts) const;

  const SafeguardConfig& config() const { return config_; }
  const Watermark& watermark() const { return *mark_; }
  const Tensor& mask() const { return mask_; }  // the mask image, undefined without one

 private:
  SafeguardConfig config_;
  Screen screen_;
  std::unique_ptr<Watermark> mark_;
  std::unique_ptr<AuditLog> audit_;
  Tensor mask_;
};

struct StreamFacts {
  std::string name;         // who or what the stream is, for the log
  std::string model;        // name of the model
  std::string instruction;  // the first one
  uint64_t seed = 0;
};

struct GuardedFrames {
  Tensor frames;              // u8 [F, H, W, 3], what may be shown
  std::vector<Alarm> alarms;  // raised in this chunk, at most one of a kind
  bool fell_back = false;     // some or all frames are the source's, because of an alarm
};

// One stream: frames in order, one thread at a time.
class StreamGuard {
 public:
  // `safeguards` must outlive it. Logs the start and its payload.
  StreamGuard(const Safeguards& safeguards, const StreamFacts& facts);
  ~StreamGuard();
  // Logs the end.
  void finish();

  // Throws Refused when the source, over the frames seen so far, carries our mark and that is not allowed.
  // Cheap: stops looking after some seconds' worth of frames.
  void look_at_source(const Tensor& frames);

  // source and edit u8 [F, H, W, 3] of one size; an undefined edit means that the editor failed ("values
  // that are not finite") and counts as an alarm. seconds: from one frame to the next. In this order: limit
  // the strength, keep the protected regions, watch, fall back, mark.
  GuardedFrames apply(const Tensor& source, const Tensor& edit, double seconds);

  // After a pause or a new source: forgets what the monitors remember.
  void reset();
  uint64_t payload() const { return payload_; }

 private:
  struct Parts;
  const Safeguards& safeguards_;
  StreamFacts facts_;
  uint64_t payload_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace rivulet
