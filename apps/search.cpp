// rivulet search: which number format each layer of an editor should multiply in.
#include "quant/search.h"

#include <filesystem>
#include <iostream>

#include "apps/bundled.h"
#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/video.h"
#include "models/editor.h"
#include "quant/edit_subject.h"
#include "quant/measure_cost.h"
#include "quant/plot.h"
#include "tensor/parallel.h"
#include "train/progress.h"

namespace rivulet {
namespace {

// Reads `count` clips of `frames` frames of a video, each starting `every` frames after the one before.
Tensors read_excerpts(const std::string& path, const std::string& size, int64_t frames, int64_t count,
                      int64_t every) {
  const auto source = open_source(path, {.size = parse_size(size), .image_rate = {}});
  Tensors clips;
  for (int64_t i = 0; i < count; ++i) {
    const Tensor clip = source->read(frames);
    check(clip.defined() && clip.dim(0) == frames, path, ": holds too few frames for ", count, " clips of ",
          frames, ", ", every, " apart");
    clips.push_back(clip);
    if (every > frames && i + 1 < count) source->read(every - frames);
  }
  return clips;
}

std::vector<EditClip> read_clips(const SearchCommandOptions& o, int64_t frames) {
  std::vector<EditClip> clips;
  int64_t video = 0;
  const auto add = [&](const std::vector<std::string>& paths, bool held_out) {
    for (const std::string& path : paths) {
      const Tensors excerpts = read_excerpts(path, o.size, frames, o.excerpts, o.every);
      for (size_t i = 0; i < excerpts.size(); ++i) {
        const size_t n = clips.size();
        const std::string name = path.substr(path.find_last_of('/') + 1) + ", frame " +
                                 std::to_string(int64_t(i) * std::max(o.every, frames));
        clips.push_back({{name, o.prompts[n % o.prompts.size()], video, held_out}, excerpts[i], o.seed + n});
      }
      ++video;
    }
  };
  add(o.calibrate, false);
  add(o.held_out, true);
  return clips;
}

// A file, a bundled one by its name, or "measured": then the costs of the search's first run, kept in its
// folder.
CostModel read_costs(const SearchCommandOptions& o, const Subject& subject,
                     const std::vector<Choice>& choices) {
  if (o.cost != "measured") {
    const bool is_file = o.cost.find_first_of("./") != std::string::npos;
    return CostModel::read(is_file ? o.cost : bundled_cost(o.cost));
  }
  const std::string file = o.out + "/cost.json";
  if (!std::filesystem::exists(file)) {
    const Json costs = measure_costs(subject.layers, choices, device_named(o.device));
    std::filesystem::create_directories(o.out);
    write_file(file, costs.dump(1) + "\n");
  }
  return CostModel::read(file);
}

void print(const SearchResult& r, const std::string& dir) {
  std::printf("%-32s %10s %10s %10s %9s   95 %% of the difference\n", "against", "cost, %", "its error",
              "ours", "ratio");
  for (const Comparison& c : r.comparisons) {
    std::printf("%-32s %10s %10s %10s %9s   ", c.with.c_str(),
                short_number(100 * c.cost / r.full_cost).c_str(), short_number(c.theirs).c_str(),
                short_number(c.ours).c_str(), short_number(c.ours / c.theirs).c_str());
    if (c.difference.defined())
      std::printf("%s to %s\n", short_number(c.difference.low).c_str(),
                  short_number(c.difference.high).c_str());
    else
      std::printf("one video: none\n");
  }
  if (!r.random.empty())
    std::printf(
        "predicted against measured squared error over %zu random policies: R2 %.3f, slope %.3f; held out R2 "
        "%.3f, slope %.3f; without interactions R2 %.3f, slope %.3f\n",
        r.random.size(), r.free.r2, r.free.slope, r.held_out.r2, r.held_out.slope, r.diagonal.r2,
        r.diagonal.slope);
  std::printf("%s/report.html, %s/policy.json\n", dir.c_str(), dir.c_str());
}

}  // namespace

int run_search(const SearchCommandOptions& o) {
  check(!o.calibrate.empty() && !o.held_out.empty(),
        "search: give clips to calibrate on and --held-out clips");
  if (o.threads > 0) set_threads(o.threads);
  EditModel model = EditModel::load(o.model.empty() ? bundled_model() : o.model, device_named(o.device));
  const EditModelConfig config = model.config();
  const int64_t frames = config.first_chunk_frames + (o.chunks - 1) * config.dit.chunk_frames;
  SampleOptions sampling;
  if (o.steps > 0) sampling.steps = default_steps(o.steps);

  SearchOptions search;
  search.dir = o.out;
  for (const std::string& name : o.layers) search.layers.push_back(layer_named(name));
  for (const std::string& name : o.choices) search.choices.push_back(choice_named(name));
  search.per_step = o.per_step;
  search.forced = o.forced;
  search.random = o.random;
  search.equal = o.equal;
  search.front = o.front;
  search.verified = o.verified;
  search.nodes = o.nodes;
  search.budget = o.budget;
  search.seed = o.seed;
  search.provenance = {{"size", o.size}, {"chunks", o.chunks}, {"seed", o.seed}, {"device", o.device}};

  const Subject subject = edit_subject(std::move(model), read_clips(o, frames), sampling);
  const CostModel cost = read_costs(o, subject, search.choices);
  const Interrupt interrupt;
  search.stop = &interrupt.flag();
  std::unique_ptr<Progress> bar;
  search.report = [&](const MeasureProgress& p) {
    if (!bar) bar = std::make_unique<Progress>("search", p.total);
    bar->start_at(p.kept);  // what an earlier run left is done, but says nothing about speed
    bar->update(p.done, p.what);
  };
  try {
    const SearchResult result = search_policy(subject, cost, search);
    if (bar) bar->finish();
    print(result, o.out);
    return 0;
  } catch (const Stopped& stopped) {
    bar.reset();
    std::cerr << "rivulet: " << stopped.what() << "\n";
    return 130;
  }
}

}  // namespace rivulet
