// rivulet edit: a clip in, the clip edited by an instruction out.
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <utility>

#include "apps/bundled.h"
#include "apps/commands.h"
#include "apps/edit_stream.h"
#include "apps/interrupt.h"
#include "apps/safeguards/guard.h"
#include "apps/video_formats.h"
#include "models/editor.h"
#include "ops/image_io.h"
#include "tensor/parallel.h"
#include "train/progress.h"

namespace fs = std::filesystem;

namespace rivulet {
namespace {

constexpr int64_t kLeastSide = 8;

void check_options(const EditOptions& o) {
  check(o.prompts.size() == o.outs.size(), "edit: ", o.prompts.size(), " prompts (-p) for ", o.outs.size(),
        " outputs (-o); each prompt needs its own");
  check(o.state.empty() || o.prompts.size() == 1, "edit: --state holds one stream, but ", o.prompts.size(),
        " prompts were given");
  check(o.mode == "stream" || o.state.empty(), "edit: --state goes on with a stream, --mode short has none");
  check(o.compare.empty() || (is_video_path(o.compare) && o.compare != "-"), "edit: --compare ", o.compare,
        " is not an .mp4 or .y4m");
  check(o.sheet.empty() || fs::path(o.sheet).extension() == ".png", "edit: --sheet ", o.sheet,
        " is not a .png");
  std::vector<std::string> files = o.outs;
  for (const std::string& extra : {o.compare, o.sheet})
    if (!extra.empty()) files.push_back(extra);
  std::error_code error;
  for (size_t i = 0; i < files.size(); ++i) {
    check(files[i] == "-" || !fs::equivalent(o.in, files[i], error), "edit: ", files[i],
          " is the input itself");
    for (size_t j = 0; j < i; ++j)
      check(files[i] != files[j], "edit: ", files[i], " is named as an output twice");
  }
}

// A picture written at the end of a long job should not turn out to be unwritable then.
void check_sheet_writable(const std::string& path) {
  if (path.empty()) return;
  const std::string trial = partial_path(path);
  check_writable(trial, path);
  fs::remove(trial);
}

double peak_megabytes() {
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1024;
}

// Everything one run of the command holds open.
struct Job {
  const EditOptions& options;
  Safeguards safeguards;
  Editor editor;
  std::vector<Prompt> prompts;
  std::unique_ptr<FrameSource> source;
  std::vector<EditState> states;
  std::vector<std::unique_ptr<FrameSink>> sinks;  // the outputs, then the comparison
  std::vector<std::string> names;                 // of the sinks
  std::unique_ptr<SheetSampler> sheet;
  std::vector<std::unique_ptr<StreamGuard>> guards;  // of the prompts
  std::vector<std::string> alarms;                   // what the guards said, each once a prompt
  EditStream stream;

  explicit Job(const EditOptions& o);
  void add_sink(const std::string& path, const VideoInfo& info) {
    sinks.push_back(open_sink(path, info));
    names.push_back(path);
  }
  void add_track(size_t i);
  Tensor step(size_t i, const Tensor& frames, const SampleOptions& sampling);
  Tensor guarded(size_t i, const Tensor& source, const Tensor& edit);
  std::string partial_files() const {
    std::string list;
    for (const auto& sink : sinks)
      if (const std::string p = sink->partial(); !p.empty()) list += (list.empty() ? "" : ", ") + p;
    return list;
  }
};

Job::Job(const EditOptions& o)
    : options(o),
      safeguards(load_safeguards(o.safeguards)),
      editor(Editor::load(o.model.empty() ? bundled_model() : o.model, device_named(o.device))) {
  for (const std::string& text : o.prompts) {
    safeguards.admit(text, "edit " + o.in);
    prompts.push_back(editor.encode(text));
  }
  const EditModelConfig& config = editor.model().config();
  check(o.mode == "stream" || config.dit.variant == "bidirectional", "edit: '", config.name,
        "' edits streams, --mode short needs a bidirectional model");
  EditState start;
  start.noise = Rng{o.seed};
  if (!o.state.empty() && fs::exists(o.state)) start = load_state(o.state);
  states.assign(prompts.size(), start);

  source = open_source(o.in, {.size = o.size.empty() ? FrameSize{} : parse_size(o.size)});
  VideoInfo info = source->info();
  check(info.size.width >= kLeastSide && info.size.height >= kLeastSide, o.in, ": frames of ", info.size,
        " are too small to edit, each side needs ", kLeastSide, " pixels");
  stream.source = source.get();
  stream.inner = nearest_multiple(info.size, editor.size_multiple());
  stream.outer = info.size = even(info.size);
  if (o.mode == "short") {
    stream.fill_chunks = false;
    stream.chunk_frames = [frames = o.frames]() mutable { return std::exchange(frames, 0); };
  } else {
    stream.chunk_frames = [this] { return editor.next_chunk_frames(states[0]); };
  }
  check_sheet_writable(o.sheet);
  for (const std::string& out : o.outs) add_sink(out, info);
  for (size_t i = 0; i < prompts.size(); ++i) add_track(i);
  stream.look = [this](const Tensor& frames) { guards[0]->look_at_source(frames); };
  if (!o.compare.empty()) {
    VideoInfo wide = info;
    wide.size = side_by_side_size(int64_t(prompts.size()) + 1, info.size);
    add_sink(o.compare, wide);
    stream.compare = sinks.back().get();
  }
  if (!o.sheet.empty()) {
    std::vector<std::string> labels = {"source"};
    labels.insert(labels.end(), o.prompts.begin(), o.prompts.end());
    sheet = std::make_unique<SheetSampler>(labels);
    stream.sheet = sheet.get();
  }
}

Tensor Job::step(size_t i, const Tensor& frames, const SampleOptions& sampling) {
  if (options.mode == "stream") return editor.step(frames, prompts[i], states[i], sampling);
  ClipSampling clip{.guidance = options.guidance};
  if (options.steps > 0) clip.steps = options.steps;
  return editor.edit_clip(frames, prompts[i], states[i].noise, clip);
}

void Job::add_track(size_t i) {
  SampleOptions sampling;
  if (options.steps > 0) sampling.steps = default_steps(options.steps);
  const std::string name = options.in + " -> " + options.outs[i];
  guards.push_back(std::make_unique<StreamGuard>(
      safeguards, StreamFacts{name, editor.model().config().name, options.prompts[i], options.seed}));
  const auto edit_frames = [this, i, sampling](const Tensor& f) -> Tensor {
    try {
      return step(i, f, sampling);
    } catch (const NotFinite&) {
      return {};  // the guard shows the source and says so
    }
  };
  const auto guard = [this, i](const Tensor& source, const Tensor& edit) { return guarded(i, source, edit); };
  stream.tracks.push_back({options.prompts[i], edit_frames, sinks[i].get(), guard});
}

Tensor Job::guarded(size_t i, const Tensor& frames, const Tensor& edit) {
  const GuardedFrames g = guards[i]->apply(frames, edit, 1 / source->info().fps.value());
  for (const Alarm& a : g.alarms)
    if (const std::string said = options.outs[i] + ": " + a.text;
        std::find(alarms.begin(), alarms.end(), said) == alarms.end())
      alarms.push_back(said);
  return g.frames;
}

void finish(Job& job, std::ostream& out) {
  const double fps = job.source->info().fps.value();
  for (size_t i = 0; i < job.sinks.size(); ++i) {
    const std::string note = job.sinks[i]->finish();
    out << job.names[i] << (note.empty() ? "" : "  (" + note + ")") << "\n";
  }
  if (job.sheet) {
    write_png(job.options.sheet, job.sheet->sheet(fps));
    out << job.options.sheet << "\n";
  }
  if (!job.options.state.empty()) {
    save_state(job.states[0], job.options.state);
    out << job.options.state << "\n";
  }
}

int edit(Job& job, std::ostream& out) {
  const Interrupt interrupt;
  job.stream.stop = &interrupt.flag();
  Progress progress("edit", std::max<int64_t>(0, job.source->info().frames));
  job.stream.progress = [&](int64_t done) { progress.update(done); };
  const int64_t frames = run(job.stream);
  const double seconds = progress.seconds();
  progress.finish();
  const bool stopped = interrupt.flag();
  if (frames > 0) finish(job, out);
  for (const auto& guard : job.guards) guard->finish();
  for (const std::string& alarm : job.alarms) out << "safeguard: " << alarm << "\n";
  const FrameSize &inner = job.stream.inner, &outer = job.stream.outer;
  out << (stopped ? "interrupted after " : "edited ") << frames << " frames of " << outer;
  if (inner != outer) out << " (at " << inner << ")";
  out.precision(3);
  out << " in " << seconds << " s, " << double(frames) * double(job.prompts.size()) / seconds
      << " frames per second, peak memory " << std::llround(peak_megabytes()) << " MB\n";
  return stopped ? 130 : 0;
}

}  // namespace

int run_edit(const EditOptions& options) {
  check_options(options);
  if (options.threads > 0) set_threads(options.threads);
  Job job(options);
  // Frames on stdout leave no room for words there.
  const bool piped = std::find(options.outs.begin(), options.outs.end(), "-") != options.outs.end();
  try {
    return edit(job, piped ? std::cerr : std::cout);
  } catch (const Error& e) {
    const std::string partial = job.partial_files();
    if (partial.empty()) throw;
    fail(e.what(), "; the frames edited so far are in ", partial);
  }
}

}  // namespace rivulet
