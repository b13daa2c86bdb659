// The search for a mixed-precision policy: measure every option alone, predict any policy from the products
// of their errors, solve for the whole front of cost against error, and measure what was found on clips that
// took no part in it, beside what others would have chosen.
#pragma once

#include "quant/bootstrap.h"
#include "quant/gram.h"
#include "quant/knapsack.h"
#include "quant/measure.h"

namespace rivulet {

struct SearchOptions {
  std::string dir;  // of the journal and the results
  std::vector<Layer> layers;
  std::vector<Choice> choices;
  bool per_step = false;   // decide for every denoising step by itself
  bool forced = false;     // solve for the teacher-forced errors instead of the free-running ones
  int64_t random = 64;     // random policies that test the prediction
  int64_t equal = 8;       // random policies of the chosen policy's cost
  int64_t front = 41;      // budgets of the front
  int64_t verified = 8;    // policies of the front measured on the held-out clips
  int64_t sketch = 16384;  // length that error vectors are kept at
  int64_t nodes = 1000;    // of each solution's search tree
  double budget = 0;  // of the chosen policy, as a share of the cost of all bf16; 0: the paper policy's cost
  uint64_t seed = 1;
  Json provenance = Json::object();  // what else the result should say; part of the settings
  Measure::Report report = {};
  const std::atomic<bool>* stop = nullptr;
};

// A policy, what was expected of it and what it did. Errors are squared and relative (gram.h).
struct PolicyResult {
  std::string name,
      kind;  // kind: "baseline", "random", "match" (the search's own at a baseline's cost), "front"
  Assignment assignment;
  double cost = 0;
  double predicted = 0, predicted_diagonal = 0;  // on the calibration clips; without interactions
  double bound = -1;                             // of the error at this cost, from the solver
  std::vector<double> calibration, held_out;     // measured, per clip, free-running
};

// A baseline against the search's own policy of no more than its cost, by relative RMS errors over the
// held-out clips.
struct Comparison {
  std::string with;
  double cost = 0;
  double ours = 0, theirs = 0;  // mean errors
  Interval difference;          // ours - theirs, paired by clip
  double p = 1;                 // of no difference, after Holm's adjustment over all comparisons
};

struct RandomPolicy {
  double cost = 0, predicted_free = 0, predicted_forced = 0, diagonal_free = 0;
  double free = 0, forced = 0, held_out = 0;  // measured; means over the clips
};

struct SearchResult {
  std::string model;
  std::vector<PolicyUnit> units;
  bool solved_forced = false;
  CostModel cost;
  double full_cost = 0;  // of all bf16
  std::vector<Solution> front;
  std::vector<PolicyResult> policies;
  size_t chosen = 0;  // of policies: what policy.json holds
  std::vector<Comparison> comparisons;
  std::vector<RandomPolicy> random;
  Agreement free, forced, held_out;  // of predictions with measurements over the random policies
  Agreement diagonal;                // the free-running ones without interactions
  std::vector<double> own;           // relative RMS error of every option alone, in the order of Gram rows
  Matrix gram;                       // what the solver saw
  std::vector<SubjectClip> clips;
  Json provenance;
};

// The problem that the solver sees, for one of the Gram matrices.
PolicyProblem make_problem(const Subject& subject, const PolicySpace& space, const CostModel& cost,
                           Matrix gram);

// Root of the mean over clips of squared errors, and the mean of their roots.
double root_mean(const std::vector<double>& squares);
double mean_root(const std::vector<double>& squares);

// Runs or goes on with a search; throws Stopped when options.stop rises. Writes policy.json, front.json,
// result.json and report.html (report.h) into the folder.
SearchResult search_policy(const Subject& subject, const CostModel& cost, const SearchOptions& options);

}  // namespace rivulet
