#include "quant/knapsack.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tensor/error.h"

using namespace rivulet;

namespace {

// `units` units of `options` options: option 0 costs most and has no error, dearer options have smaller error
// vectors in a space of few dimensions, so that interactions of both signs are strong.
PolicyProblem random_problem(Rng& rng, int64_t units, int64_t options, int64_t dims, bool shared) {
  PolicyProblem p;
  std::vector<std::vector<double>> errors;
  for (int64_t u = 0; u < units; ++u) {
    std::vector<PolicyOption> list = {{8 * rng.uniform(0.5, 2), -1}};
    for (int64_t f = 1; f < options; ++f) {
      list.push_back({list[0].cost * rng.uniform(0.1, 0.8), int64_t(errors.size())});
      std::vector<double> e;
      for (int64_t d = 0; d < dims; ++d) e.push_back(rng.normal() / (0.2 + list.back().cost));
      errors.push_back(e);
    }
    p.units.push_back(list);
  }
  if (shared)
    for (int s = 0; s < int(units) / 2; ++s)
      p.shared.push_back({rng.uniform(0, 3), {{2 * s, 1}, {2 * s, 2}, {2 * s + 1, 1}, {2 * s + 1, 2}}});
  p.gram = Matrix(int64_t(errors.size()));
  for (size_t i = 0; i < errors.size(); ++i)
    for (size_t j = 0; j < errors.size(); ++j) {
      double sum = 0;
      for (int64_t d = 0; d < dims; ++d) sum += errors[i][size_t(d)] * errors[j][size_t(d)];
      p.gram(int64_t(i), int64_t(j)) = sum;
    }
  return p;
}

// The least error within the budget, by trying everything.
double brute_force(const PolicyProblem& p, double budget) {
  Assignment z(p.units.size(), 0);
  double best = INFINITY;
  for (bool more = true; more;) {
    if (cost_of(p, z) <= budget) best = std::min(best, error_of(p, z));
    more = false;
    for (size_t u = 0; u < z.size() && !more; ++u) {
      more = ++z[u] < int(p.units[u].size());
      if (!more) z[u] = 0;
    }
  }
  return best;
}

}  // namespace

TEST_CASE("costs and errors of a choice, by hand") {
  PolicyProblem p;
  p.units = {{{10, -1}, {4, 0}}, {{20, -1}, {5, 1}, {8, 2}}};
  p.shared = {{3, {{0, 1}, {1, 1}}}};
  p.gram = Matrix(3);
  const double g[3][3] = {{4, -1, 2}, {-1, 9, 0}, {2, 0, 1}};
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) p.gram(i, j) = g[i][j];
  CHECK(cost_of(p, {0, 0}) == 30);
  CHECK(cost_of(p, {1, 0}) == 27);
  CHECK(cost_of(p, {1, 1}) == 12);  // the shared cost is paid once
  CHECK(error_of(p, {0, 0}) == 0);
  CHECK(error_of(p, {1, 1}) == 4 + 9 - 2);
  CHECK(error_of(p, {1, 2}) == 4 + 1 + 4);
  CHECK(diagonal_error_of(p, {1, 1}) == 13);
  CHECK(error_of(diagonal_problem(p), {1, 1}) == 13);
  CHECK(cheapest(p) == Assignment{1, 1});
  CHECK(most_accurate(p) == Assignment{0, 0});
  p.gram(0, 1) = 7;
  CHECK_THROWS_AS(check_problem(p), Error);
}

TEST_CASE("the solver finds what brute force finds, and its bound holds") {
  Rng rng{5};
  int64_t proven = 0, below = 0;
  for (int round = 0; round < 40; ++round) {
    const PolicyProblem p = random_problem(rng, 7, 4, 4 + rng.below(20), round % 2 == 1);
    const PolicySolver solver(p);
    const double low = cost_of(p, cheapest(p)), high = cost_of(p, most_accurate(p));
    for (const double part : {0.0, 0.1, 0.35, 0.7, 0.95}) {
      const double budget = low + part * (high - low), best = brute_force(p, budget);
      const Solution s = solver.solve(budget);
      CHECK(s.cost == cost_of(p, s.choice));
      CHECK(s.cost <= budget * (1 + 1e-9));
      CHECK(s.error == doctest::Approx(best).epsilon(1e-9));
      CHECK(s.bound <= best * (1 + 1e-9) + 1e-12);
      proven += s.gap() < 1e-8;
      // With the search cut off at the root the bound must hold all the same.
      const Solution cut = solver.solve(budget, {.gap = 0, .nodes = 1});
      CHECK(cut.bound <= best * (1 + 1e-9) + 1e-12);
      CHECK(cut.error >= best * (1 - 1e-9));
      below += cut.bound < best * (1 - 1e-6);
    }
  }
  CHECK(proven == 200);
  CHECK(below > 20);  // or the test above never met a case where the root is not enough
}

TEST_CASE("without interactions the bound at the root is that of the linear problem") {
  Rng rng{11};
  const PolicyProblem p = diagonal_problem(random_problem(rng, 40, 5, 30, false));
  const PolicySolver solver(p);
  const double low = cost_of(p, cheapest(p)), high = cost_of(p, most_accurate(p));
  const Solution s = solver.solve((low + high) / 2);
  CHECK(s.gap() < 1e-8);
  // The linear relaxation mixes two options of one unit, so the root's gap is at most one unit's error.
  const Solution root = solver.solve((low + high) / 2, {.gap = 0, .nodes = 1});
  double largest = 0;
  for (int64_t i = 0; i < p.gram.n; ++i) largest = std::max(largest, p.gram(i, i));
  CHECK(s.error - root.bound <= largest);
}

TEST_CASE("a larger problem: the gap is reported, and every other policy respects the bound") {
  Rng rng{3};
  const PolicyProblem p = random_problem(rng, 30, 5, 1500, true);
  const PolicySolver solver(p);
  const double low = cost_of(p, cheapest(p)), high = cost_of(p, most_accurate(p));
  const double budget = low + 0.4 * (high - low);
  const Solution s = solver.solve(budget, {.gap = 0.01, .nodes = 300});
  CHECK(s.bound > 0);
  CHECK(s.gap() < 0.2);
  double nearest = INFINITY;
  for (int i = 0; i < 300; ++i) {
    const Assignment z = random_assignment(p, budget, rng, 0.01 * budget);
    REQUIRE(cost_of(p, z) <= budget * (1 + 1e-9));
    CHECK(cost_of(p, z) >= 0.97 * budget);
    CHECK(error_of(p, z) >= s.bound);
    nearest = std::min(nearest, error_of(p, z));
    CHECK(error_of(p, solver.improve(z, budget)) >= s.bound);
  }
  CHECK(s.error < nearest);
  const Solution again = solver.solve(budget, {.gap = 0.01, .nodes = 300});
  CHECK(again.choice == s.choice);
  CHECK(again.bound == s.bound);
}

TEST_CASE("the front falls, and is what the solver says at each budget") {
  Rng rng{17};
  const PolicyProblem p = random_problem(rng, 6, 4, 8, true);
  const PolicySolver solver(p);
  const auto front = pareto_front(solver, 25);
  REQUIRE(front.size() > 5);
  for (size_t i = 0; i < front.size(); ++i) {
    CHECK(front[i].error == doctest::Approx(brute_force(p, front[i].cost * (1 + 1e-12))).epsilon(1e-9));
    if (i > 0) {
      CHECK(front[i].cost > front[i - 1].cost);
      CHECK(front[i].error < front[i - 1].error);
    }
  }
  CHECK(front.back().error == 0);
  CHECK_THROWS_AS(solver.solve(0.5 * cost_of(p, cheapest(p))), Error);
}

TEST_CASE("the Cholesky factor and the inverse of a small matrix") {
  Matrix a(3);
  const double v[3][3] = {{4, 2, -2}, {2, 10, 5}, {-2, 5, 9}};
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) a(i, j) = v[i][j];
  const Matrix inverse = inverse_spd(a);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      double sum = 0;
      for (int k = 0; k < 3; ++k) sum += a(i, k) * inverse(k, j);
      CHECK(sum == doctest::Approx(i == j ? 1 : 0).epsilon(1e-12));
    }
  Matrix l = a;
  REQUIRE(cholesky(l));
  CHECK(l(0, 0) == 2);
  CHECK(l(1, 0) == 1);
  CHECK(l(1, 1) == 3);
  CHECK(l(2, 0) == -1);
  CHECK(l(2, 1) == 2);
  CHECK(l(2, 2) == 2);
  a(2, 2) = 5;
  CHECK_FALSE(cholesky(a));
}
