#include "apps/safeguards/config.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "apps/safeguards/default_json.h"
#include "nn/config.h"
#include "tensor/error.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

void read_rules(Fields f, std::vector<RuleSet>& rules) {
  if (!f.has("rules")) return;
  rules.clear();
  for (Fields& r : f.objects("rules")) {
    RuleSet set;
    r.required("category", set.category);
    r.required("terms", set.terms);
    check(!set.category.empty(), r.where("category"), " is empty");
    check(!set.terms.empty(), r.where("terms"), " is empty");
    r.done();
    rules.push_back(std::move(set));
  }
}

void read_screen(Fields f, ScreenConfig& c) {
  f.optional("enabled", c.enabled);
  f.optional("longest", c.longest, between(1, 10000));
  f.optional("allowed", c.allowed);
  read_rules(f, c.rules);
  f.raw("rules");
  Fields classifier = f.object("classifier");
  classifier.optional("command", c.classifier.command);
  classifier.optional("seconds", c.classifier.seconds, between(0.05, 60));
  classifier.choice("on_failure", c.classifier.on_failure, {"refuse", "allow"});
  classifier.done();
  f.done();
}

void read_control(Fields f, ControlConfig& c) {
  f.optional("max_strength", c.max_strength, between(0, 1));
  f.optional("mask", c.mask);
  f.optional("allow_marked_source", c.allow_marked_source);
  f.done();
}

void read_monitor(Fields f, MonitorConfig& c) {
  f.optional("enabled", c.enabled);
  f.optional("black_luma", c.black_luma, between(0, 1));
  f.optional("frozen_seconds", c.frozen_seconds, between(0.1, 3600));
  f.optional("still", c.still, between(0, 1));
  f.optional("drift", c.drift, between(0, 1));
  f.optional("hold_seconds", c.hold_seconds, between(0, 3600));
  f.optional("flashes", c.flashes, between(1, 3));
  f.optional("flash_change", c.flash_change, between(0.01, 0.1));
  f.optional("flash_dark", c.flash_dark, between(0.8, 1));
  f.optional("flash_area", c.flash_area, between(0.01, 0.25));
  f.optional("flash_field", c.flash_field, between(0.1, 1));
  f.optional("red_share", c.red_share, between(0.5, 0.8));
  f.optional("red_change", c.red_change, between(0.02, 0.2));
  f.done();
}

void read_mark(Fields f, MarkConfig& c) {
  f.optional("enabled", c.enabled);
  f.optional("key", c.key);
  check(!c.key.empty(), f.where("key"), " is empty");
  f.optional("key_file", c.key_file);
  f.optional("payload", c.payload);
  check(c.payload.empty() ||
            (c.payload.size() == 16 && c.payload.find_first_not_of("0123456789abcdef") == std::string::npos),
        f.where("payload"), " is '", c.payload, "', not 16 hex digits in lower case");
  f.optional("psnr", c.psnr, between(42, 60));
  f.done();
}

void read_audit(Fields f, AuditConfig& c) {
  f.optional("file", c.file);
  f.done();
}

void read_all(Fields f, SafeguardConfig& c) {
  read_screen(f.object("screen"), c.screen);
  read_control(f.object("control"), c.control);
  read_monitor(f.object("monitor"), c.monitor);
  read_mark(f.object("mark"), c.mark);
  read_audit(f.object("audit"), c.audit);
  f.done();
}

std::string file_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  check(in.good(), path, ": cannot be read");
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

SafeguardConfig default_safeguards() {
  SafeguardConfig c;
  read_all(Fields(parse_json(kDefaultSafeguards, "default.json"), "default.json"), c);
  return c;
}

SafeguardConfig load_safeguards(const std::string& path) {
  SafeguardConfig c = default_safeguards();
  if (path.empty()) return c;
  read_all(Fields(read_json(path), path), c);
  for (std::string* p : {&c.control.mask, &c.mark.key_file, &c.audit.file})
    if (!p->empty()) *p = (fs::path(path).parent_path() / *p).string();
  if (!c.mark.key_file.empty()) {
    c.mark.key = file_bytes(c.mark.key_file);
    check(!c.mark.key.empty(), c.mark.key_file, ": the key is empty");
  }
  return c;
}

}  // namespace rivulet
