// The least error for a budget, with a proven bound:  min z' G z  s.t.  cost(z) <= budget, one option a unit.
//
// Branch and bound. On 0/1 points z' G z = z' (G - D) z + d' z for any diagonal D, so D is chosen as large as
// G - D stays positive semi-definite: the relaxation to fractional options is then convex and tight. A lower
// bound needs no exact minimum of it: a convex function lies above its tangent at any point x, and the
// tangent is minimised exactly as a linear multiple-choice knapsack (Frank and Wolfe 1956 walk x towards that
// minimum). Shared costs enter the bound by equal parts to the units that may still use them, which is never
// more than they cost.
#pragma once

#include "quant/problem.h"

namespace rivulet {

struct SolveOptions {
  double gap = 1e-9;      // stop when error and bound are this near, relative to the error
  int64_t nodes = 4000;   // and at the latest after so many nodes; the rest of the gap is reported
  int64_t kicks = 40;     // random restarts of improve() before the tree
  Assignment start = {};  // a choice within the budget to start from, when one is known
};

struct Solution {
  Assignment choice;
  double cost = 0, error = 0;
  double bound = 0;  // no choice within the budget has less error
  int64_t nodes = 0;
  // 0 when proven the best; 0.1 when the best might have 10 % less error.
  double gap() const { return error > 0 ? (error - bound) / error : 0; }
};

// Prepared once per problem, then solved for any number of budgets.
class PolicySolver {
 public:
  // Throws as check_problem does.
  explicit PolicySolver(PolicyProblem problem);
  const PolicyProblem& problem() const { return problem_; }

  // Throws when cheapest() is above the budget.
  Solution solve(double budget, const SolveOptions& options = {}) const;
  // The best single changes and pairs of changes within the budget, until there are none.
  Assignment improve(Assignment choice, double budget) const;

 private:
  struct Node;
  struct Relaxed;
  bool bound(Node& node, double budget, double best, int64_t iterations, Assignment& rounded) const;
  int64_t at(size_t unit, int option) const { return first_[unit] + option; }

  PolicyProblem problem_;
  std::vector<int64_t> first_;            // of each unit's options in one list of all
  Matrix q_;                              // the Gram matrix over that list
  Matrix convex_;                         // q_ - D, with the products inside a unit chosen freely
  std::vector<double> linear_;            // d
  std::vector<std::vector<int>> shares_;  // shared costs that each option uses
};

// Solutions for `count` budgets, evenly spaced from the cheapest policy's cost to the most accurate one's,
// and for `more` budgets; in order of cost, without those that another one beats in both.
std::vector<Solution> pareto_front(const PolicySolver& solver, int64_t count,
                                   const std::vector<double>& more = {}, const SolveOptions& options = {});

}  // namespace rivulet
