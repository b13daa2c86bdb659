#include "quant/problem.h"

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace rivulet {
namespace {

int64_t row_of(const PolicyProblem& p, size_t unit, int option) {
  return p.units[unit][size_t(option)].error;
}

}  // namespace

void check_problem(const PolicyProblem& p) {
  for (size_t u = 0; u < p.units.size(); ++u) {
    check(!p.units[u].empty(), "policy search: unit ", u, " has no options");
    for (const PolicyOption& o : p.units[u]) {
      check(std::isfinite(o.cost) && o.cost >= 0, "policy search: an option of unit ", u, " costs ", o.cost);
      check(o.error >= -1 && o.error < p.gram.n, "policy search: an option of unit ", u, " has error row ",
            o.error, ", the matrix has ", p.gram.n);
    }
  }
  for (const SharedCost& s : p.shared) {
    check(std::isfinite(s.cost) && s.cost >= 0, "policy search: a shared cost is ", s.cost);
    for (const auto& [u, f] : s.users)
      check(u >= 0 && u < int(p.units.size()) && f >= 0 && f < int(p.units[size_t(u)].size()),
            "policy search: a shared cost names option ", f, " of unit ", u);
  }
  for (int64_t i = 0; i < p.gram.n; ++i)
    for (int64_t j = 0; j <= i; ++j)
      check(std::isfinite(p.gram(i, j)) && p.gram(i, j) == p.gram(j, i), "policy search: entry (", i, ", ", j,
            ") of the error matrix is ", p.gram(i, j), ", its mirror ", p.gram(j, i));
}

double cost_of(const PolicyProblem& p, const Assignment& z) {
  double cost = 0;
  for (size_t u = 0; u < p.units.size(); ++u) cost += p.units[u][size_t(z[u])].cost;
  for (const SharedCost& s : p.shared)
    if (std::any_of(s.users.begin(), s.users.end(),
                    [&](const std::pair<int, int>& user) { return z[size_t(user.first)] == user.second; }))
      cost += s.cost;
  return cost;
}

double error_of(const PolicyProblem& p, const Assignment& z) {
  std::vector<int64_t> rows;
  for (size_t u = 0; u < p.units.size(); ++u)
    if (const int64_t r = row_of(p, u, z[u]); r >= 0) rows.push_back(r);
  double error = 0;
  for (size_t a = 0; a < rows.size(); ++a) {
    error += p.gram(rows[a], rows[a]);
    for (size_t b = 0; b < a; ++b) error += 2 * p.gram(rows[a], rows[b]);
  }
  return error;
}

double diagonal_error_of(const PolicyProblem& p, const Assignment& z) {
  double error = 0;
  for (size_t u = 0; u < p.units.size(); ++u)
    if (const int64_t r = row_of(p, u, z[u]); r >= 0) error += p.gram(r, r);
  return error;
}

PolicyProblem diagonal_problem(PolicyProblem p) {
  for (int64_t i = 0; i < p.gram.n; ++i)
    for (int64_t j = 0; j < p.gram.n; ++j)
      if (i != j) p.gram(i, j) = 0;
  return p;
}

Assignment cheapest(const PolicyProblem& p) {
  Assignment z(p.units.size(), 0);
  for (size_t u = 0; u < z.size(); ++u)
    for (int f = 1; f < int(p.units[u].size()); ++f)
      if (p.units[u][size_t(f)].cost < p.units[u][size_t(z[u])].cost) z[u] = f;
  for (bool better = !p.shared.empty(); better;) {
    better = false;
    for (size_t u = 0; u < z.size(); ++u)
      for (int f = 0; f < int(p.units[u].size()); ++f) {
        Assignment other = z;
        other[u] = f;
        if (cost_of(p, other) < cost_of(p, z) * (1 - 1e-12)) z = other, better = true;
      }
  }
  return z;
}

Assignment most_accurate(const PolicyProblem& p) {
  Assignment z(p.units.size(), 0);
  const auto own = [&](size_t u, int f) {
    const int64_t r = row_of(p, u, f);
    return r < 0 ? 0.0 : p.gram(r, r);
  };
  for (size_t u = 0; u < z.size(); ++u)
    for (int f = 1; f < int(p.units[u].size()); ++f)
      if (own(u, f) < own(u, z[u])) z[u] = f;
  return z;
}

Assignment random_assignment(const PolicyProblem& p, double budget, Rng& rng, double tolerance,
                             int64_t tries) {
  const Assignment low = cheapest(p);
  check(cost_of(p, low) <= budget * (1 + 1e-12), "policy search: the budget is ", budget,
        ", the cheapest policy costs ", cost_of(p, low));
  Assignment z(p.units.size());
  for (size_t u = 0; u < z.size(); ++u) z[u] = int(rng.below(int64_t(p.units[u].size())));
  double cost = cost_of(p, z);
  for (int64_t i = 0; i < tries && (cost > budget || cost < budget - tolerance); ++i) {
    Assignment other = z;
    const size_t u = size_t(rng.below(int64_t(z.size())));
    other[u] = int(rng.below(int64_t(p.units[u].size())));
    const double c = cost_of(p, other);
    if (cost > budget ? c < cost : (c > cost && c <= budget)) z = other, cost = c;
  }
  for (size_t u = 0; u < z.size() && cost > budget; ++u) {  // stuck above: give up units from the front
    z[u] = low[u];
    cost = cost_of(p, z);
  }
  return z;
}

}  // namespace rivulet
