#include "quant/search.h"

#include <algorithm>
#include <cmath>

#include "quant/report.h"
#include "tensor/safetensors.h"

namespace rivulet {
namespace {

// Which streams of random numbers are whose.
enum Stream : uint64_t { kRandomPolicies = 1, kEqualPolicies = 2, kBootstrap = 3 };

double mean(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return sum / double(v.size());
}

// A policy of others; missing where the search does not offer one of its choices.
struct Baseline {
  std::string name;
  Assignment assignment;
};

std::vector<Baseline> baselines(const Subject& subject, const PolicySpace& space,
                                const std::vector<Choice>& choices) {
  std::vector<Baseline> list;
  const auto add = [&](const std::string& name, const Policy& policy) {
    try {
      list.push_back({name, space.assignment(policy)});
    } catch (const Error&) {
    }
  };
  for (const Choice& choice : choices) {
    Policy policy;
    policy.rules = {{{}, {}, 0, 1000, choice}};
    add("all " + name_of(choice), policy);
  }
  add("paper", paper_policy(subject.depth));
  return list;
}

Json settings_of(const Subject& subject, const PolicySpace& space, const SearchOptions& options) {
  Json units = Json::array();
  for (const PolicyUnit& unit : space.units()) {
    Json choices = Json::array();
    for (const Choice& c : unit.choices) choices.push_back(name_of(c));
    units.push_back({unit.name(), choices});
  }
  Json clips = Json::array();
  for (const SubjectClip& c : subject.clips)
    clips.push_back({{"clip", c.name}, {"instruction", c.instruction}, {"held_out", c.held_out}});
  return {{"model", subject.name},
          {"fingerprint", subject.fingerprint},
          {"steps", subject.times},
          {"sketch", options.sketch},
          {"units", units},
          {"clips", clips},
          {"setting", options.provenance}};
}

class Search {
 public:
  Search(const Subject& subject, const CostModel& cost, const SearchOptions& options)
      : subject_(subject),
        cost_(cost),
        options_(options),
        space_(subject.depth, subject.softmax_blocks, known(cost, options.layers),
               known(cost, options.choices), options.per_step ? subject.times : std::vector<double>{}),
        journal_(options.dir, settings_of(subject, space_, options)),
        measure_(subject, space_, journal_, options.sketch, options.report, options.stop),
        baselines_(baselines(subject, space_, known(cost, options.choices))) {}

  SearchResult run() {
    const int64_t others = int64_t(baselines_.size()) * 2 + 4 + options_.equal + options_.verified;
    measure_.expect(options_.random + others, options_.random + others);
    const Measure::Grams grams = measure_.grams();
    const Matrix& gram = options_.forced ? grams.forced : grams.free;
    result_.gram = gram;
    const PolicySolver solver(make_problem(subject_, space_, cost_, gram));
    problem_ = &solver.problem();
    describe();
    test_prediction(grams);
    choose(solver);
    compare();
    return std::move(result_);
  }

 private:
  // What the cost file has no price for is not offered.
  static std::vector<Choice> known(const CostModel& cost, const std::vector<Choice>& choices) {
    std::vector<Choice> list;
    for (const Choice& c : choices)
      if (cost.knows(c)) list.push_back(c);
    check(!list.empty(), "policy search: the cost file ", cost.name(), " knows none of the choices");
    return list;
  }

  static std::vector<Layer> known(const CostModel& cost, std::vector<Layer> layers) {
    if (!cost.knows_scores()) std::erase(layers, Layer::scores);
    return layers;
  }

  void describe() {
    result_.model = subject_.name;
    result_.units = space_.units();
    result_.cost = cost_;
    result_.solved_forced = options_.forced;
    result_.full_cost = cost_of(*problem_, Assignment(space_.size(), 0));
    result_.clips = subject_.clips;
    result_.provenance = options_.provenance;
    for (int64_t i = 0; i < result_.gram.n; ++i) result_.own.push_back(std::sqrt(result_.gram(i, i)));
  }

  void test_prediction(const Measure::Grams& grams) {
    PolicyProblem free = *problem_, forced = *problem_;
    free.gram = grams.free;
    forced.gram = grams.forced;
    const double low = cost_of(free, cheapest(free)), high = result_.full_cost;
    Rng rng = Rng{options_.seed}.fork(kRandomPolicies);
    for (int64_t i = 0; i < options_.random; ++i) {
      const double budget = low + (high - low) * (double(i) + 0.5) / double(options_.random);
      const Assignment z = random_assignment(free, budget, rng, 0.01 * (high - low));
      const std::string name = "random " + std::to_string(i + 1);
      const PolicyErrors measured = measure_.on_calibration(z, name);
      result_.random.push_back({cost_of(free, z), error_of(free, z), error_of(forced, z),
                                diagonal_error_of(free, z), mean(measured.free), mean(measured.forced),
                                mean(measure_.on_held_out(z, name).free)});
    }
    const auto fit = [&](double RandomPolicy::*predicted, double RandomPolicy::*measured) {
      std::vector<double> x, y;
      for (const RandomPolicy& r : result_.random) x.push_back(r.*predicted), y.push_back(r.*measured);
      return agreement(x, y);
    };
    if (options_.random < 2) return;
    result_.free = fit(&RandomPolicy::predicted_free, &RandomPolicy::free);
    result_.forced = fit(&RandomPolicy::predicted_forced, &RandomPolicy::forced);
    result_.held_out = fit(&RandomPolicy::predicted_free, &RandomPolicy::held_out);
    result_.diagonal = fit(&RandomPolicy::diagonal_free, &RandomPolicy::free);
  }

  size_t add(const std::string& name, const std::string& kind, const Assignment& z, double bound = -1) {
    PolicyResult p{
        name,  kind, z, cost_of(*problem_, z), error_of(*problem_, z), diagonal_error_of(*problem_, z),
        bound, {},   {}};
    p.calibration = measure_.on_calibration(z, name).free;
    p.held_out = measure_.on_held_out(z, name).free;
    result_.policies.push_back(std::move(p));
    return result_.policies.size() - 1;
  }

  // The search's own policy of no more than a baseline's cost, and the two side by side.
  size_t match(const PolicySolver& solver, size_t baseline) {
    const PolicyResult theirs = result_.policies[baseline];
    SolveOptions solving{.nodes = options_.nodes};
    solving.start = theirs.assignment;
    const Solution s = solver.solve(theirs.cost, solving);
    const size_t ours = add("search at the cost of " + theirs.name, "match", s.choice, s.bound);
    pairs_.push_back({ours, baseline});
    return ours;
  }

  void choose(const PolicySolver& solver) {
    const SolveOptions solving{.nodes = options_.nodes};
    std::vector<double> costs;
    size_t paper = result_.policies.size(), first_match = paper;
    for (const Baseline& b : baselines_) {
      const size_t at = add(b.name, "baseline", b.assignment);
      if (b.name == "paper") paper = at;
      const size_t ours = match(solver, at);
      if (b.name == "paper") match_with_its_choices(at);
      if (b.name == "paper" || at == 0) first_match = ours;
      costs.push_back(result_.policies[at].cost);
    }
    result_.chosen = first_match;
    const double budget = options_.budget > 0  ? options_.budget * result_.full_cost
                          : baselines_.empty() ? result_.full_cost / 2
                                               : result_.policies[first_match].cost;
    if (options_.budget > 0 || baselines_.empty()) {
      const Solution s = solver.solve(budget, solving);
      result_.chosen = add("search", "match", s.choice, s.bound);
    }
    others_at_the_same_cost(budget);
    result_.front = pareto_front(solver, options_.front, costs, solving);
    const int64_t n = int64_t(result_.front.size()), count = std::min(n, options_.verified);
    for (int64_t i = 0; i < count; ++i) {
      const Solution& s = result_.front[size_t(count == 1 ? 0 : i * (n - 1) / (count - 1))];
      add("front " + std::to_string(i + 1), "front", s.choice, s.bound);
    }
  }

  // The search held to the choices of a baseline: to the formats that it uses, in the layers where it has
  // any. Tells what choosing by layer gains from what other formats and layers add.
  void match_with_its_choices(size_t baseline) {
    const PolicyResult theirs = result_.policies[baseline];
    std::vector<Layer> layers;
    std::vector<Choice> choices = {Choice{}};
    for (size_t u = 0; u < space_.size(); ++u) {
      const Choice& choice = space_.units()[u].choices[size_t(theirs.assignment[u])];
      if (choice.plain()) continue;
      layers.push_back(space_.units()[u].layer);
      choices.push_back(choice);
    }
    const auto has = [](const auto& list, const auto& x) {
      return std::find(list.begin(), list.end(), x) != list.end();
    };
    PolicyProblem held = *problem_;
    for (size_t u = 0; u < space_.size(); ++u)
      for (size_t f = 1; f < space_.units()[u].choices.size(); ++f)
        if (!has(layers, space_.units()[u].layer) || !has(choices, space_.units()[u].choices[f]))
          held.units[u][f].cost = 2 * result_.full_cost;  // above any budget
    const Solution s =
        PolicySolver(held).solve(theirs.cost, {.nodes = options_.nodes, .start = theirs.assignment});
    pairs_.push_back({add("search with the choices of " + theirs.name, "match", s.choice), baseline,
                      ", ours with its choices"});
  }

  // What a search without interactions, one by gradients, and chance would have taken for this budget.
  void others_at_the_same_cost(double budget) {
    const auto solve_and_add = [&](const std::string& name, PolicyProblem problem) {
      const PolicySolver other(std::move(problem));
      const Solution s = other.solve(budget, {.nodes = options_.nodes});
      pairs_.push_back({result_.chosen, add(name, "baseline", s.choice)});
    };
    solve_and_add("without interactions", diagonal_problem(*problem_));
    if (subject_.fisher) {
      PolicyProblem fisher = *problem_;
      fisher.gram = fisher_matrix();
      solve_and_add("diagonal Fisher", std::move(fisher));
    }
    Rng rng = Rng{options_.seed}.fork(kEqualPolicies);
    for (int64_t i = 0; i < options_.equal; ++i) {
      const Assignment z = random_assignment(*problem_, budget, rng, 0.005 * result_.full_cost);
      const std::string name = "equal cost " + std::to_string(i + 1);
      pairs_.push_back({result_.chosen, add(name, "random", z)});
    }
  }

  Matrix fisher_matrix() {
    Matrix m(space_.rows());
    for (const size_t clip : measure_.calibration()) {
      const std::vector<double> scores = subject_.fisher(clip, space_.units());
      check(int64_t(scores.size()) == m.n, "policy search: ", scores.size(), " Fisher scores for ", m.n,
            " options");
      for (int64_t i = 0; i < m.n; ++i) m(i, i) += scores[size_t(i)] / double(measure_.calibration().size());
    }
    return m;
  }

  void compare() {
    std::vector<int> videos;
    for (const size_t clip : measure_.held_out()) videos.push_back(int(subject_.clips[clip].video));
    std::vector<double> p;
    for (const Pair& pair : pairs_) {
      const PolicyResult &a = result_.policies[pair.ours], &b = result_.policies[pair.theirs];
      std::vector<double> difference;
      for (size_t i = 0; i < a.held_out.size(); ++i)
        difference.push_back(std::sqrt(a.held_out[i]) - std::sqrt(b.held_out[i]));
      Comparison c{b.name + pair.note, b.cost, mean_root(a.held_out), mean_root(b.held_out), {}, 1};
      c.difference = bootstrap_mean(difference, videos, Rng{options_.seed}.fork(kBootstrap));
      p.push_back(c.difference.p);
      result_.comparisons.push_back(c);
    }
    const std::vector<double> adjusted = holm(p);
    for (size_t i = 0; i < adjusted.size(); ++i) result_.comparisons[i].p = adjusted[i];
  }

  const Subject& subject_;
  const CostModel& cost_;
  const SearchOptions& options_;
  PolicySpace space_;
  Journal journal_;
  Measure measure_;
  std::vector<Baseline> baselines_;
  const PolicyProblem* problem_ = nullptr;
  struct Pair {
    size_t ours, theirs;  // of result_.policies
    std::string note = {};
  };
  std::vector<Pair> pairs_;  // to compare
  SearchResult result_;
};

}  // namespace

double root_mean(const std::vector<double>& squares) { return std::sqrt(mean(squares)); }

double mean_root(const std::vector<double>& squares) {
  double sum = 0;
  for (const double x : squares) sum += std::sqrt(x);
  return sum / double(squares.size());
}

PolicyProblem make_problem(const Subject& subject, const PolicySpace& space, const CostModel& cost,
                           Matrix gram) {
  PolicyProblem p;
  p.gram = std::move(gram);
  // (input, t of the unit, format) -> who reads that copy
  std::map<std::tuple<int64_t, double, Format>, SharedCost> copies;
  int64_t row = 0;
  for (size_t u = 0; u < space.size(); ++u) {
    const PolicyUnit& unit = space.units()[u];
    const auto found = std::find_if(subject.layers.begin(), subject.layers.end(), [&](const LayerWork& w) {
      return w.block == unit.block && w.layer == unit.layer;
    });
    check(found != subject.layers.end(), "policy search: nobody said what ", unit.name(), " costs");
    const LayerWork& work = *found;
    const double runs = work.per_chunk / (unit.all_t() ? 1 : double(subject.times.size()));
    std::vector<PolicyOption> options;
    for (int f = 0; f < int(unit.choices.size()); ++f) {
      const Choice& choice = unit.choices[size_t(f)];
      const double one =
          work.layer == Layer::scores ? cost.scores(work.shape, choice) : cost.product(work.shape, choice);
      options.push_back({runs * one, choice.plain() ? -1 : row++});
      if (const double copy = cost.copy(work.shape.rows, work.columns, choice); copy > 0) {
        SharedCost& shared = copies[{work.input, unit.t_low, choice.format}];
        shared.cost = runs * copy;
        shared.users.emplace_back(int(u), f);
      }
    }
    p.units.push_back(std::move(options));
  }
  for (auto& [key, shared] : copies) p.shared.push_back(std::move(shared));
  return p;
}

SearchResult search_policy(const Subject& subject, const CostModel& cost, const SearchOptions& options) {
  check(options.random == 0 || options.random >= 2, "policy search: ", options.random,
        " random policies, not 1");
  SearchResult result = Search(subject, cost, options).run();
  write_results(result, options.dir);
  return result;
}

}  // namespace rivulet
