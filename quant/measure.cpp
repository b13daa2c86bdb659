#include "quant/measure.h"

#include "ops/shape.h"
#include "quant/gram.h"

namespace rivulet {
namespace {

// All chunks of a clip as one f32 vector.
Tensor flat(const Tensors& chunks) {
  Tensors parts;
  for (const Tensor& chunk : chunks)
    parts.push_back(chunk.detach().to(Device::cpu).to(DType::f32).contiguous().reshape({-1}));
  return cat(parts, 0);
}

Tensor difference(const Tensor& a, const Tensor& b) {
  const Tensor d = a.clone();
  d.add_in_place(b, -1);
  return d;
}

double square_sum(const Tensor& t) {
  const float* p = t.data<float>();
  double sum = 0;
  for (int64_t i = 0; i < t.numel(); ++i) sum += double(p[i]) * double(p[i]);
  return sum;
}

// A policy by what it does, whatever it is called.
std::string key_of(const Policy& policy, const char* where) {
  Policy nameless = policy;
  nameless.name.clear();
  return std::string(where) + " " + nameless.to_json()["rules"].dump();
}

}  // namespace

Measure::Measure(const Subject& subject, const PolicySpace& space, Journal& journal, int64_t sketch,
                 Report report, const std::atomic<bool>* stop)
    : subject_(subject),
      space_(space),
      journal_(journal),
      sketch_(sketch),
      report_(std::move(report)),
      stop_(stop) {
  for (size_t i = 0; i < subject.clips.size(); ++i)
    (subject.clips[i].held_out ? held_out_ : calibration_).push_back(i);
  check(!calibration_.empty() && !held_out_.empty(), "policy search: ", calibration_.size(),
        " clips to calibrate on and ", held_out_.size(), " held out; both are needed");
}

void Measure::expect(int64_t policies_on_calibration, int64_t policies_held_out) {
  progress_.total = (space_.rows() + policies_on_calibration) * int64_t(calibration_.size()) +
                    policies_held_out * int64_t(held_out_.size());
}

void Measure::step(const std::string& what, bool kept, int64_t runs) {
  progress_.done += runs;
  if (kept) progress_.kept += runs;
  progress_.what = what;
  progress_.total = std::max(progress_.total, progress_.done);
  if (report_) report_(progress_);
}

const Measure::Reference& Measure::reference(size_t clip) {
  auto found = references_.find(clip);
  if (found == references_.end()) {
    if (stop_ && *stop_) throw Stopped();
    const Tensor result = flat(subject_.edit(clip, Policy{}, false).free);
    found = references_.emplace(clip, Reference{result, energy(result)}).first;
  }
  return found->second;
}

void Measure::run_single(size_t unit, int option) {
  const Policy policy = space_.single(unit, option);
  const int64_t runs = int64_t(calibration_.size());
  if (journal_.single(policy.name)) return step(policy.name, true, runs);
  Tensors free, forced;
  for (const size_t clip : calibration_) {
    const Reference& r = reference(clip);
    if (stop_ && *stop_) throw Stopped();
    const EditedClip edited = subject_.edit(clip, policy, true);
    free.push_back(sketch(difference(flat(edited.free), r.result), sketch_).unsqueeze(0));
    forced.push_back(sketch(difference(flat(edited.forced), r.result), sketch_).unsqueeze(0));
    step(policy.name, false, 1);
  }
  journal_.put_single(policy.name, {cat(free, 0), cat(forced, 0)});
}

Measure::Grams Measure::grams() {
  std::vector<SingleErrors> singles;
  for (size_t u = 0; u < space_.size(); ++u)
    for (int f = 1; f < int(space_.units()[u].choices.size()); ++f) run_single(u, f);
  for (size_t u = 0; u < space_.size(); ++u)
    for (int f = 1; f < int(space_.units()[u].choices.size()); ++f)
      singles.push_back(*journal_.single(space_.single(u, f).name));
  const int64_t n = space_.rows();
  Grams out{Matrix(n), Matrix(n), {}};
  const double share = 1 / double(calibration_.size());
  for (size_t c = 0; c < calibration_.size(); ++c) {
    const auto of_clip = [&](Tensor SingleErrors::*which) {
      Tensors rows;
      for (const SingleErrors& e : singles) rows.push_back((e.*which).slice(0, int64_t(c), int64_t(c) + 1));
      return gram_matrix(cat(rows, 0), reference(calibration_[c]).energy);
    };
    const auto add = [&](Matrix& sum, const Matrix& one) {
      for (size_t i = 0; i < sum.v.size(); ++i) sum.v[i] += share * one.v[i];
    };
    out.free_by_clip.push_back(of_clip(&SingleErrors::free));
    add(out.free, out.free_by_clip.back());
    add(out.forced, of_clip(&SingleErrors::forced));
  }
  return out;
}

std::vector<double> Measure::on(const std::vector<size_t>& clips, const Policy& policy, const char* where,
                                bool forced, std::vector<double>* forced_errors) {
  const std::string key = key_of(policy, where),
                    forced_key = key_of(policy, (std::string(where) + " forced").c_str());
  const auto kept = journal_.measured(key), kept_forced = journal_.measured(forced_key);
  if (kept && (!forced || kept_forced)) {
    if (forced) *forced_errors = *kept_forced;
    step(policy.name, true, int64_t(clips.size()));
    return *kept;
  }
  std::vector<double> free;
  for (const size_t clip : clips) {
    const Reference& r = reference(clip);
    if (stop_ && *stop_) throw Stopped();
    const EditedClip edited = subject_.edit(clip, policy, forced);
    free.push_back(square_sum(difference(flat(edited.free), r.result)) / r.energy);
    if (forced) forced_errors->push_back(square_sum(difference(flat(edited.forced), r.result)) / r.energy);
    step(policy.name, false, 1);
  }
  if (forced) journal_.put_measured(forced_key, *forced_errors);
  journal_.put_measured(key, free);
  return free;
}

PolicyErrors Measure::on_calibration(const Assignment& assignment, const std::string& name) {
  PolicyErrors e;
  e.free = on(calibration_, space_.policy(assignment, name), "calibration", true, &e.forced);
  return e;
}

PolicyErrors Measure::on_held_out(const Assignment& assignment, const std::string& name) {
  return {on(held_out_, space_.policy(assignment, name), "held out", false, nullptr), {}};
}

}  // namespace rivulet
