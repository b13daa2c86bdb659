// One option for each unit: the quadratic multiple-choice knapsack that a precision policy is.
//
//   error(z) = z' G z,  G the Gram matrix of the options' error vectors (gram.h)
//   cost(z)  = sum of the chosen options' costs + each shared cost whose users were chosen at all
//
// A shared cost is what several layers that read one input pay once, such as making its quantised copy.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "quant/matrix.h"
#include "tensor/random.h"

namespace rivulet {

struct PolicyOption {
  double cost = 0;
  int64_t error = -1;  // a row of the Gram matrix; -1: no error at all
};

struct SharedCost {
  double cost = 0;
  std::vector<std::pair<int, int>> users;  // (unit, option); paid once if any of them is chosen
};

struct PolicyProblem {
  std::vector<std::vector<PolicyOption>> units;
  std::vector<SharedCost> shared;
  Matrix gram;  // symmetric, positive semi-definite
};

// The option of each unit.
using Assignment = std::vector<int>;

// Throws where an index is out of range, a cost is negative or not finite, or the matrix is not symmetric.
void check_problem(const PolicyProblem& problem);
double cost_of(const PolicyProblem& problem, const Assignment& choice);
double error_of(const PolicyProblem& problem, const Assignment& choice);
// error_of with every product of two different units left out: what a search without interactions believes.
double diagonal_error_of(const PolicyProblem& problem, const Assignment& choice);
// The same problem without those products.
PolicyProblem diagonal_problem(PolicyProblem problem);

// A choice that no single change makes cheaper: the cheapest of all where nothing is shared.
Assignment cheapest(const PolicyProblem& problem);
// The option with the least error of its own in every unit.
Assignment most_accurate(const PolicyProblem& problem);

// A random choice that costs at most `budget`, and no more than `tolerance` less where `tries` random changes
// of one unit lead there. All units are drawn alike, so the draw does not know which ones are sensitive.
// Throws when cheapest() is above the budget.
Assignment random_assignment(const PolicyProblem& problem, double budget, Rng& rng, double tolerance,
                             int64_t tries = 20000);

}  // namespace rivulet
