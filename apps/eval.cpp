// rivulet eval: an editor on real clips, measured against the exact rendering of each edit.
#include <chrono>
#include <cstdio>
#include <iostream>
#include <numeric>

#include "apps/bundled.h"
#include "apps/commands.h"
#include "apps/video.h"
#include "models/editor.h"
#include "ops/image.h"
#include "ops/image_io.h"
#include "ops/shape.h"
#include "train/edit_samples.h"
#include "train/edit_training.h"
#include "train/instructions.h"
#include "train/metrics.h"

namespace rivulet {
namespace {

// A recolouring is measured on clips that show the colour at all: this share of all pixels, by soft mask.
constexpr double kLeastColoured = 0.002;

struct Result {
  std::string clip, edit, instruction;
  double coverage = 1;  // mean of the mask
  std::optional<double> score = {}, psnr_outside = {}, boundary_ratio = {};
  double psnr = 0, fps = 0;
};

Json to_json(const Result& r) {
  const auto value = [](const std::optional<double>& v) { return v ? Json(*v) : Json(nullptr); };
  return {{"clip", r.clip},
          {"edit", r.edit},
          {"instruction", r.instruction},
          {"mask_coverage", r.coverage},
          {"edit_score", value(r.score)},
          {"psnr_outside_db", value(r.psnr_outside)},
          {"psnr_db", r.psnr},
          {"boundary_ratio", value(r.boundary_ratio)}};
}

std::string base_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

std::string cell(const std::optional<double>& v) {
  char text[16] = "-";
  if (v) std::snprintf(text, sizeof text, "%.2f", *v);
  return text;
}

// All edits of one clip; appends a row [source | edit | target] of the middle frame per edit to `rows`.
std::vector<Result> evaluate_clip(const Editor& editor, const std::string& path, const EvalOptions& options,
                                  const std::vector<Edit>& edits, const SampleOptions& sampling,
                                  Tensors& rows) {
  const auto source = open_source(path, {.size = parse_size(options.size), .image_rate = {}});
  Tensor frames = source->read(options.frames);
  check(frames.defined(), path, ": holds no frames");
  const auto chunks = chunk_lengths(editor.model().config(), frames.dim(0));
  frames = frames.slice(0, 0, std::accumulate(chunks.begin(), chunks.end(), int64_t(0))).contiguous();
  const Tensor pixels = u8_to_unit(frames);
  std::vector<Result> results;
  for (const Edit& edit : edits) {
    const EditResult exact = apply_edit(pixels, edit);
    Result r{base_name(path), edit.name(), canonical_instruction(edit)};
    const auto mask = exact.mask.to_vector();
    r.coverage = std::accumulate(mask.begin(), mask.end(), 0.0) / double(mask.size());
    if (edit.family == Family::recolour && r.coverage < kLeastColoured) continue;
    const auto start = std::chrono::steady_clock::now();
    const Tensor edited = edit_clip(editor, frames, r.instruction, options.seed, sampling);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    r.fps = double(frames.dim(0)) / seconds.count();
    const Tensor output = u8_to_unit(edited);
    if (edit.family != Family::keep) r.score = edit_score(output, pixels, exact.pixels, exact.mask);
    if (edit.family != Family::look) r.psnr_outside = psnr_outside(output, exact.pixels, exact.mask);
    r.psnr = psnr(output, exact.pixels);
    r.boundary_ratio = boundary_ratio(flicker(output, exact.pixels), chunks);
    std::printf("%-22s %-18s %8s %12s %8.2f %10s %8.2f\n", r.clip.c_str(), r.edit.c_str(),
                cell(r.score).c_str(), cell(r.psnr_outside).c_str(), r.psnr, cell(r.boundary_ratio).c_str(),
                r.fps);
    std::fflush(stdout);
    const int64_t middle = frames.dim(0) / 2;
    rows.push_back(cat(
        {frames.select(0, middle), edited.select(0, middle), unit_to_u8(exact.pixels).select(0, middle)}, 1));
    results.push_back(std::move(r));
  }
  return results;
}

}  // namespace

int run_eval(const EvalOptions& options) {
  check(!options.clips.empty(), "eval: no clips given");
  const Editor editor =
      Editor::load(options.model.empty() ? bundled_model() : options.model, device_named(options.device));
  std::vector<Edit> edits;
  for (const std::string& name : options.edits) edits.push_back(edit_named(name));
  SampleOptions sampling;
  if (options.steps > 0) sampling.steps = default_steps(options.steps);
  std::printf("%-22s %-18s %8s %12s %8s %10s %8s\n", "clip", "edit", "score", "outside dB", "PSNR dB",
              "boundary", "FPS");
  Json report = {{"model", options.model},  {"size", options.size}, {"frames", options.frames},
                 {"steps", sampling.steps}, {"seed", options.seed}, {"results", Json::array()}};
  Tensors rows;
  for (const std::string& clip : options.clips)
    for (const Result& r : evaluate_clip(editor, clip, options, edits, sampling, rows))
      report["results"].push_back(to_json(r));
  if (!options.json.empty()) write_file(options.json, report.dump(2) + "\n");
  // Clips of other shapes than the first keep to the table; a sheet needs rows of one width.
  Tensors same_width;
  for (const Tensor& row : rows)
    if (row.dim(1) == rows[0].dim(1)) same_width.push_back(row);
  if (!options.sheet.empty() && !same_width.empty()) write_png(options.sheet, cat(same_width, 0));
  return 0;
}

}  // namespace rivulet
