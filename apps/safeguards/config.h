// What the safeguards do, from one JSON file: `rivulet edit --safeguards FILE`, `rivulet serve --safeguards
// FILE`. A file states what differs from the defaults of apps/safeguards/default.json, which is compiled in.
// Every field is checked, an unknown one is refused, and the error names the file and the path of the field.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rivulet {

// Terms of one kind of instruction that is refused. A term is one or more words; `*` at its end stands for
// any continuation of the last word.
struct RuleSet {
  std::string category;  // also the first half of a rule's name: "violence/behead*"
  std::vector<std::string> terms;
};

struct ClassifierConfig {
  std::vector<std::string> command;   // argv; empty for none. Started without a shell.
  double seconds = 2;                 // it has to answer within
  std::string on_failure = "refuse";  // or "allow": what a late, crashed or unclear answer means
};

struct ScreenConfig {
  bool enabled = true;
  int64_t longest = 400;             // code points of an instruction
  std::vector<std::string> allowed;  // phrases that a rule must not be found in: "shoot a film"
  std::vector<RuleSet> rules;
  ClassifierConfig classifier;
};

struct ControlConfig {
  double max_strength = 1;  // share of the edit in the blend with the source, 0..1
  std::string mask;         // an image file, white where the source must stay; empty for none
  bool allow_marked_source = false;
};

struct MonitorConfig {
  bool enabled = true;
  double black_luma = 0.02;     // mean luma (0..1) under which a picture counts as black
  double frozen_seconds = 1.5;  // the edit stands still for so long while the source moves
  double still = 0.001;         // mean change of luma (0..1) from frame to frame that counts as none
  double drift = 0.6;           // largest structural distance from the source, 0..1 (monitor.h)
  double hold_seconds = 2;      // how long the stream stays with the source after an alarm
  // Flashes (flash.h).
  double flashes = 3;         // of either kind, allowed within any one second
  double flash_change = 0.1;  // of relative luminance
  double flash_dark = 0.8;    // luminance that the darker picture must be under
  double flash_area = 0.25;   // share of the field that must flash together
  double flash_field = 1;     // side of the field as a share of the picture's: 1 is BT.1702, 1/3 WCAG
  double red_share = 0.8;     // R / (R + G + B) of a saturated red
  double red_change = 0.2;    // distance in u', v' that a red transition exceeds
};

struct MarkConfig {
  bool enabled = true;
  std::string key = "rivulet";  // any text; whoever knows it can read and write marks
  std::string key_file;         // takes its place: the key is the file's bytes
  std::string payload;          // 16 hex digits; empty for a digest of the session's facts
  double psnr = 42;             // of a marked frame's luma against the unmarked, dB, at least 42
};

struct AuditConfig {
  std::string file;  // appended to; empty for no log
};

struct SafeguardConfig {
  ScreenConfig screen;
  ControlConfig control;
  MonitorConfig monitor;
  MarkConfig mark;
  AuditConfig audit;
};

// The defaults that are compiled in.
SafeguardConfig default_safeguards();
// The defaults with what the file changes; an empty path is the defaults. Paths in the file are taken
// relative to it.
SafeguardConfig load_safeguards(const std::string& path);

}  // namespace rivulet
