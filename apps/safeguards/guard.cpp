#include "apps/safeguards/guard.h"

#include <algorithm>
#include <string>

#include "apps/safeguards/classifier.h"
#include "apps/safeguards/digest.h"
#include "apps/safeguards/regions.h"
#include "ops/image_io.h"

namespace rivulet {
namespace {

// When the source is read for our mark: after so many frames. Each reading may err with the chance in
// watermark.h, so there are few.
constexpr int64_t kSourceReadings[] = {1, 8, 32, 96, 192};

uint64_t payload_of(const SafeguardConfig& config, const StreamFacts& facts) {
  if (!config.mark.payload.empty()) return std::stoull(config.mark.payload, nullptr, 16);
  const Json all = {
      {"name", facts.name}, {"model", facts.model}, {"instruction", facts.instruction}, {"seed", facts.seed}};
  return leading_64(sha256(all.dump(-1, ' ', false, Json::error_handler_t::replace)));
}

}  // namespace

Safeguards::Safeguards(SafeguardConfig config)
    : config_(std::move(config)),
      screen_(config_.screen),
      mark_(std::make_unique<Watermark>(config_.mark.key, config_.mark.psnr)) {
  if (!config_.audit.file.empty()) audit_ = std::make_unique<AuditLog>(config_.audit.file);
  if (!config_.control.mask.empty()) mask_ = read_image(config_.control.mask);
}

void Safeguards::log(const std::string& event, const Json& facts) const {
  if (audit_) audit_->append(event, facts);
}

void Safeguards::admit(const std::string& instruction, const std::string& who) const {
  Json facts = {{"who", who}, {"instruction", instruction}};
  const auto refuse = [&](const std::string& rule, const std::string& text) {
    facts["rule"] = rule;
    log("instruction refused", facts);
    throw Refused(rule, text);
  };
  if (const auto match = screen_.find(instruction))
    refuse(match->rule, "the instruction is refused by the rule " + match->rule);
  if (config_.screen.enabled && !config_.screen.classifier.command.empty()) {
    const Verdict v = ask_classifier(config_.screen.classifier, instruction);
    if (!v.reason.empty()) facts["classifier"] = v.reason;
    if (!v.allowed)
      refuse(v.failed ? "classifier/failed" : "classifier/refused",
             "the instruction is refused by the rule classifier/" +
                 std::string(v.failed ? "failed" : "refused") + (v.reason.empty() ? "" : ": " + v.reason));
  }
  log("instruction admitted", facts);
}

struct StreamGuard::Parts {
  Monitor monitor;
  MarkEvidence evidence;  // of the source
  bool source_settled = false;
  double held = 0;  // seconds that the source is still to be shown
  int64_t frames = 0, source_frames = 0;
  Tensor mask;
  explicit Parts(const MonitorConfig& config) : monitor(config) {}
};

StreamGuard::StreamGuard(const Safeguards& safeguards, const StreamFacts& facts)
    : safeguards_(safeguards),
      facts_(facts),
      payload_(payload_of(safeguards.config(), facts)),
      parts_(std::make_unique<Parts>(safeguards.config().monitor)) {
  Json entry = {{"stream", facts.name},
                {"model", facts.model},
                {"instruction", facts.instruction},
                {"seed", facts.seed}};
  if (safeguards.config().mark.enabled) entry["payload"] = hex_64(payload_);
  safeguards.log("stream started", entry);
}

StreamGuard::~StreamGuard() = default;

void StreamGuard::finish() {
  safeguards_.log(
      "stream ended",
      {{"stream", facts_.name}, {"frames", parts_->frames}, {"frames_of_source", parts_->source_frames}});
}

void StreamGuard::look_at_source(const Tensor& frames) {
  Parts& p = *parts_;
  if (p.source_settled || !Watermark::fits(size_of_frames(frames))) return;
  const int64_t before = p.evidence.frames;
  safeguards_.watermark().gather(frames, p.evidence);
  const auto due = [&](int64_t n) { return before < n && n <= p.evidence.frames; };
  if (std::any_of(std::begin(kSourceReadings), std::end(kSourceReadings), due))
    if (const auto found = safeguards_.watermark().read(p.evidence)) {
      p.source_settled = true;
      const bool allowed = safeguards_.config().control.allow_marked_source;
      const std::string payload = hex_64(found->payload);
      safeguards_.log(allowed ? "marked source admitted" : "marked source refused",
                      {{"stream", facts_.name}, {"payload", payload}});
      if (!allowed)
        throw Refused("source/marked", "the source already carries our mark (payload " + payload +
                                           "), and control.allow_marked_source is false");
    }
  if (p.evidence.frames >= *std::rbegin(kSourceReadings)) p.source_settled = true;
}

GuardedFrames StreamGuard::apply(const Tensor& source, const Tensor& edit, double seconds) {
  const SafeguardConfig& config = safeguards_.config();
  Parts& p = *parts_;
  const int64_t frames = source.dim(0);
  GuardedFrames out;
  const Tensor original = source.contiguous();
  if (safeguards_.mask() && !p.mask) p.mask = region_mask(safeguards_.mask(), source.dim(1), source.dim(2));
  Tensor shown = edit ? blend(original, edit.contiguous(), config.control.max_strength, p.mask) : original;
  if (!edit)
    out.alarms.push_back({Trouble::not_finite, 0, 0,
                          "the network gave values that are not finite; the source is shown instead"});
  else if (config.monitor.enabled)
    out.alarms = p.monitor.check(original, shown, seconds);

  if (!out.alarms.empty()) p.held = config.monitor.hold_seconds;
  if (!out.alarms.empty() || p.held > 0) {
    if (out.alarms.empty()) p.held -= double(frames) * seconds;
    shown = original;
    out.fell_back = true;
    p.source_frames += frames;
  }
  if (config.monitor.enabled) p.monitor.shown(original, shown, seconds);
  for (const Alarm& a : out.alarms)
    safeguards_.log("alarm", {{"stream", facts_.name},
                              {"kind", name_of(a.kind)},
                              {"value", a.value},
                              {"limit", a.limit},
                              {"frame", p.frames}});
  p.frames += frames;
  const bool marks = config.mark.enabled && Watermark::fits(size_of_frames(shown));
  out.frames = marks ? safeguards_.watermark().mark(shown, payload_) : shown;
  return out;
}

void StreamGuard::reset() {
  parts_->monitor.reset();
  parts_->evidence = {};
  parts_->source_settled = false;
  parts_->held = 0;
  parts_->mask = {};
}

}  // namespace rivulet
