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

struct ChoiceOption {
  double cost = 0;
  int64_t error = -1;  // a row of the Gram matrix; -1: no error at all
};

struct SharedCost {
  double cost = 0;
  std::vector<std::pair<int, int>> users;  // (unit, option); paid once if any of them is chosen
};

struct ChoiceProblem {
  std::vector<std::vector<ChoiceOption>> units;
  std::vector<SharedCost> shared;
  Matrix gram;  // symmetric, positive semi-definite
};

// The option of each unit.
using Choice = std::vector<int>;

// Throws where an index is out of range, a cost is negative or not finite, or the matrix is not symmetric.
void check_problem(const ChoiceProblem& problem);
double cost_of(const ChoiceProblem& problem, const Choice& choice);
double error_of(const ChoiceProblem& problem, const Choice& choice);
// error_of with every product of two different units left out: what a search without interactions believes.
double diagonal_error_of(const ChoiceProblem& problem, const Choice& choice);
// The same problem without those products.
ChoiceProblem diagonal_problem(ChoiceProblem problem);

// A choice that no single change makes cheaper: the cheapest of all where nothing is shared.
Choice cheapest(const ChoiceProblem& problem);
// The option with the least error of its own in every unit.
Choice most_accurate(const ChoiceProblem& problem);

// A random choice that costs at most `budget`, and no more than `tolerance` less where `tries` random changes
// of one unit lead there. All units are drawn alike, so the draw does not know which ones are sensitive.
// Throws when cheapest() is above the budget.
Choice random_choice(const ChoiceProblem& problem, double budget, Rng& rng, double tolerance,
                     int64_t tries = 20000);

}  // namespace rivulet
