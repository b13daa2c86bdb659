// The measuring part of a search: errors of single options and of whole policies, against the model as it is,
// each run once and kept in a journal.
#pragma once

#include <atomic>

#include "quant/journal.h"
#include "quant/space.h"
#include "quant/subject.h"

namespace rivulet {

// Runs still to do and done, for a progress bar; `kept` of them were found in the journal.
struct MeasureProgress {
  int64_t done = 0, total = 0, kept = 0;
  std::string what;
};

// Squared errors over N var(reference), per clip.
struct PolicyErrors {
  std::vector<double> free, forced;
};

// Thrown by the functions below when the stop flag is up; what was measured is kept.
class Stopped : public Error {
 public:
  Stopped() : Error("policy search: stopped; the same command goes on from here") {}
};

class Measure {
 public:
  using Report = std::function<void(const MeasureProgress&)>;
  // `sketch`: the length that error vectors are kept at (gram.h).
  Measure(const Subject& subject, const PolicySpace& space, Journal& journal, int64_t sketch, Report report,
          const std::atomic<bool>* stop);

  const std::vector<size_t>& calibration() const { return calibration_; }
  const std::vector<size_t>& held_out() const { return held_out_; }

  // How many runs a whole search makes, for the progress. A run is one clip under one policy.
  void expect(int64_t policies_on_calibration, int64_t policies_held_out);

  // Gram matrices over all options but bf16 (PolicySpace::rows), the mean over the calibration clips.
  struct Grams {
    Matrix free, forced;
    std::vector<Matrix> free_by_clip;
  };
  Grams grams();
  PolicyErrors on_calibration(const Assignment& assignment, const std::string& name);
  PolicyErrors on_held_out(const Assignment& assignment, const std::string& name);

 private:
  struct Reference {
    Tensor result;  // f32 [N], chunk after chunk
    double energy = 0;
  };
  const Reference& reference(size_t clip);
  void run_single(size_t unit, int option);
  std::vector<double> on(const std::vector<size_t>& clips, const Policy& policy, const char* where,
                         bool forced, std::vector<double>* forced_errors);
  void step(const std::string& what, bool kept, int64_t runs);

  const Subject& subject_;
  const PolicySpace& space_;
  Journal& journal_;
  int64_t sketch_;
  Report report_;
  const std::atomic<bool>* stop_;
  std::vector<size_t> calibration_, held_out_;
  std::map<size_t, Reference> references_;
  MeasureProgress progress_;
};

}  // namespace rivulet
