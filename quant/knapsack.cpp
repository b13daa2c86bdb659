#include "quant/knapsack.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <queue>

#include "tensor/error.h"

namespace rivulet {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Room left to rounding where a bound is compared with an error, and a cost with a budget.
constexpr double kSlack = 1e-12;

bool fits(double cost, double budget) { return cost <= budget + kSlack * std::abs(budget); }

// A point of the linear relaxation: the cheaper and the dearer option of one unit may be mixed.
struct Vertex {
  double value = kInfinity;  // infinite: nothing fits the budget
  double price = 0;          // what one unit of budget is worth
  Assignment choice;         // of the cheaper options
  int mixed = -1, dearer = 0;
  double share = 0;  // of the dearer option in unit `mixed`
};

struct Step {
  double rate;  // value gained per cost saved
  int unit, from, to;
};

// min g' x over one option a unit, c' x <= budget, by the hull of each unit's options: from the best value
// down to the cheapest, in order of what the saving costs.
Vertex linear_knapsack(const std::vector<int64_t>& first, const std::vector<char>& allowed,
                       const std::vector<double>& g, const std::vector<double>& c, double budget) {
  const size_t units = first.size() - 1;
  Vertex v;
  v.choice.resize(units);
  double cost = 0, value = 0;
  std::vector<Step> steps;
  for (size_t u = 0; u < units; ++u) {
    const int64_t base = first[u], count = first[u + 1] - base;
    int now = -1;
    for (int f = 0; f < count; ++f) {
      if (!allowed[size_t(base + f)]) continue;
      const double df = now < 0 ? -1 : g[size_t(base + f)] - g[size_t(base + now)];
      if (df < 0 || (df == 0 && c[size_t(base + f)] < c[size_t(base + now)])) now = f;
    }
    if (now < 0) return v;
    v.choice[u] = now;
    cost += c[size_t(base + now)];
    value += g[size_t(base + now)];
    for (;;) {  // the next corner of the hull
      int next = -1;
      double rate = kInfinity;
      for (int f = 0; f < count; ++f) {
        const double saved = c[size_t(base + now)] - c[size_t(base + f)];
        if (!allowed[size_t(base + f)] || saved <= 0) continue;
        const double r = (g[size_t(base + f)] - g[size_t(base + now)]) / saved;
        if (r < rate || (r == rate && next >= 0 && c[size_t(base + f)] < c[size_t(base + next)]))
          rate = r, next = f;
      }
      if (next < 0) break;
      steps.push_back({rate, int(u), now, next});
      now = next;
    }
  }
  if (!fits(cost, budget)) {
    std::stable_sort(steps.begin(), steps.end(),
                     [](const Step& a, const Step& b) { return a.rate < b.rate; });
    for (const Step& s : steps) {
      const size_t from = size_t(first[size_t(s.unit)] + s.from), to = size_t(first[size_t(s.unit)] + s.to);
      const double saved = c[from] - c[to];
      v.price = s.rate;
      v.choice[size_t(s.unit)] = s.to;
      if (fits(cost - saved, budget)) {
        const double part = std::clamp((cost - budget) / saved, 0.0, 1.0);
        value += part * (g[to] - g[from]);
        v.mixed = s.unit, v.dearer = s.from, v.share = 1 - part;
        cost = budget;
        break;
      }
      cost -= saved;
      value += g[to] - g[from];
    }
    if (!fits(cost, budget)) return v;
  }
  v.value = value;
  return v;
}

// Not far below the largest s <= 1 with matrix - s * diag positive definite, so that it is well away from
// singular there.
double diagonal_shift(const Matrix& m, const std::vector<double>& diag) {
  const auto holds = [&](double s) {
    Matrix a = m;
    for (int64_t i = 0; i < a.n; ++i) a(i, i) -= s * diag[size_t(i)];
    return cholesky(a);
  };
  double low = 0, high = 1;
  for (double step = 1; !holds(low); step *= 2) high = low, low -= step;
  while (high - low > 1e-3) {
    const double middle = (low + high) / 2;
    (holds(middle) ? low : high) = middle;
  }
  return low - 1e-3;
}

// Raises the entries of `shift` one after the other as far as m - diag(shift) stays positive definite:
// (m + t e e') is singular at t = -1 / inverse(i, i). Half of it at a time, so that the first do not take
// all; nothing where little is left, measured by `scale`, or rounding would take over.
void raise_shift(const Matrix& m, const std::vector<double>& scale, std::vector<double>& shift) {
  Matrix a = m;
  for (int64_t i = 0; i < a.n; ++i) a(i, i) -= shift[size_t(i)];
  Matrix inverse = inverse_spd(a);
  std::vector<double> column(size_t(m.n));
  for (int pass = 0; pass < 4; ++pass)
    for (int64_t i = 0; i < m.n; ++i) {
      const double t = 0.5 / inverse(i, i);
      if (!(t > 1e-4 * scale[size_t(i)])) continue;
      shift[size_t(i)] += t;
      for (int64_t j = 0; j < m.n; ++j) column[size_t(j)] = inverse(i, j);
      const double scale = t / (1 - t * column[size_t(i)]);
      for (int64_t r = 0; r < m.n; ++r) {
        const double f = scale * column[size_t(r)];
        for (int64_t j = 0; j < m.n; ++j) inverse(r, j) += f * column[size_t(j)];
      }
    }
}

}  // namespace

PolicySolver::PolicySolver(PolicyProblem problem) : problem_(std::move(problem)) {
  check_problem(problem_);
  first_.push_back(0);
  for (const auto& unit : problem_.units) first_.push_back(first_.back() + int64_t(unit.size()));
  const int64_t n = first_.back();
  shares_.resize(size_t(n));
  for (size_t s = 0; s < problem_.shared.size(); ++s)
    for (const auto& [u, f] : problem_.shared[s].users) shares_[size_t(at(size_t(u), f))].push_back(int(s));

  std::vector<int64_t> row, unit;
  for (size_t u = 0; u < problem_.units.size(); ++u)
    for (const PolicyOption& o : problem_.units[u]) row.push_back(o.error), unit.push_back(int64_t(u));
  q_ = Matrix(n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      if (row[size_t(i)] >= 0 && row[size_t(j)] >= 0)
        q_(i, j) = problem_.gram(row[size_t(i)], row[size_t(j)]);

  // Options without error would make the matrix singular: they get a small one that d takes back.
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, q_(i, i));
  const double floor = largest > 0 ? 1e-9 * largest : 1;
  std::vector<double> scale(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) scale[size_t(i)] = std::max(q_(i, i), floor);
  // Two options of one unit are never chosen together, so their product is free: take the part of it that
  // leaves the most for the diagonal.
  double best = -kInfinity;
  for (const double part : {0.0, 0.5, 1.0}) {
    Matrix m = q_;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        if (i == j)
          m(i, i) = scale[size_t(i)];
        else if (unit[size_t(i)] == unit[size_t(j)])
          m(i, j) *= part;
      }
    if (const double s = diagonal_shift(m, scale); s > best) best = s, convex_ = std::move(m);
  }
  std::vector<double> shift(scale);
  for (double& s : shift) s *= best;
  raise_shift(convex_, scale, shift);
  linear_.resize(size_t(n));
  for (int64_t i = 0; i < n; ++i) {
    convex_(i, i) -= shift[size_t(i)];
    linear_[size_t(i)] = q_(i, i) - convex_(i, i);
  }
}

// Part of the search space: the options that are still allowed, and the least error they may have.
struct PolicySolver::Node {
  std::vector<char> allowed;
  double bound = 0;
  std::vector<float> x;  // where the parent's relaxation ended
  int branch = -1;       // the unit to split; -1: every unit has one option
  int64_t order = 0;     // ties are broken alike in every run
};

// The relaxed costs of a node: those of the options alone plus equal parts of the shared ones.
struct PolicySolver::Relaxed {
  std::vector<double> cost;
  double paid = 0;  // shared costs that are certain
  Relaxed(const PolicySolver& solver, const std::vector<char>& allowed) {
    const PolicyProblem& p = solver.problem_;
    for (const auto& unit : p.units)
      for (const PolicyOption& o : unit) cost.push_back(o.cost);
    for (const SharedCost& s : p.shared) {
      std::vector<int> may(p.units.size(), 0);
      for (const auto& [u, f] : s.users) may[size_t(u)] += allowed[size_t(solver.at(size_t(u), f))];
      bool certain = false;
      int64_t count = 0;
      for (size_t u = 0; u < may.size(); ++u) {
        int left = 0;
        for (int64_t i = solver.first_[u]; i < solver.first_[u + 1]; ++i) left += allowed[size_t(i)];
        certain = certain || (may[u] > 0 && may[u] == left);
        count += may[u] > 0;
      }
      if (certain) paid += s.cost;
      if (certain || count == 0) continue;
      for (const auto& [u, f] : s.users) cost[size_t(solver.at(size_t(u), f))] += s.cost / double(count);
    }
  }
};

// Sharpens node.bound, drops options that cannot beat `best`, and picks the unit to branch on. `rounded` is a
// choice near the relaxed minimum, not always within the budget. False when nothing can beat `best`.
bool PolicySolver::bound(Node& node, double budget, double best, int64_t iterations,
                         Assignment& rounded) const {
  const int64_t n = first_.back();
  const size_t units = problem_.units.size();
  const Relaxed relaxed(*this, node.allowed);
  const double left = budget - relaxed.paid;
  std::vector<double> x(size_t(n), 0), px(size_t(n), 0), ps(static_cast<size_t>(n)),
      g(static_cast<size_t>(n));
  const auto add_column = [&](std::vector<double>& to, int64_t i, double w) {
    if (w != 0)
      for (int64_t j = 0; j < n; ++j) to[size_t(j)] += w * convex_(i, j);
  };
  for (size_t u = 0; u < units; ++u) {  // the parent's point, with what is no longer allowed spread out
    double sum = 0, count = 0;
    for (int64_t i = first_[u]; i < first_[u + 1]; ++i)
      if (node.allowed[size_t(i)]) sum += node.x.empty() ? 0 : double(node.x[size_t(i)]), count += 1;
    for (int64_t i = first_[u]; i < first_[u + 1]; ++i)
      if (node.allowed[size_t(i)]) {
        x[size_t(i)] = sum > 1e-6 ? double(node.x[size_t(i)]) / sum : 1 / count;
        add_column(px, i, x[size_t(i)]);
      }
  }
  std::vector<double> tangent;  // the one with the highest minimum, which is `minimum`
  double minimum = -kInfinity, price = 0;
  for (int64_t k = 0; k < iterations; ++k) {
    double curve = 0;
    for (int64_t i = 0; i < n; ++i) {
      g[size_t(i)] = 2 * px[size_t(i)] + linear_[size_t(i)];
      curve += x[size_t(i)] * px[size_t(i)];
    }
    const Vertex v = linear_knapsack(first_, node.allowed, g, relaxed.cost, left);
    if (v.value == kInfinity) return false;
    if (v.value - curve > minimum) {
      minimum = v.value - curve;
      tangent = g;
      price = v.price;
      node.bound = std::max(node.bound, minimum);
    }
    rounded = v.choice;
    if (node.bound >= best * (1 - kSlack)) return false;
    std::vector<double> s(size_t(n), 0);
    for (size_t u = 0; u < units; ++u) s[size_t(at(u, v.choice[u]))] = 1;
    if (v.mixed >= 0) {
      s[size_t(at(size_t(v.mixed), v.choice[size_t(v.mixed)]))] = 1 - v.share;
      s[size_t(at(size_t(v.mixed), v.dearer))] = v.share;
    }
    std::fill(ps.begin(), ps.end(), 0);
    for (int64_t i = 0; i < n; ++i) add_column(ps, i, s[size_t(i)]);
    double slope = 0, bend = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double d = s[size_t(i)] - x[size_t(i)];
      slope += g[size_t(i)] * d;
      bend += d * (ps[size_t(i)] - px[size_t(i)]);
    }
    if (slope > -1e-9 * std::abs(best)) break;
    const double step = bend > 0 ? std::min(1.0, -slope / (2 * bend)) : 1.0;
    for (int64_t i = 0; i < n; ++i) {
      x[size_t(i)] += step * (s[size_t(i)] - x[size_t(i)]);
      px[size_t(i)] += step * (ps[size_t(i)] - px[size_t(i)]);
    }
  }
  // By the tangent and the price of the budget, what each option costs beyond the best of its unit.
  double widest = 0;
  node.branch = -1;
  for (size_t u = 0; u < units; ++u) {
    double low = kInfinity, spread = 0;
    int count = 0;
    const auto reduced = [&](int64_t i) { return tangent[size_t(i)] + price * relaxed.cost[size_t(i)]; };
    for (int64_t i = first_[u]; i < first_[u + 1]; ++i)
      if (node.allowed[size_t(i)]) low = std::min(low, reduced(i));
    for (int64_t i = first_[u]; i < first_[u + 1]; ++i) {
      if (!node.allowed[size_t(i)]) continue;
      if (minimum + reduced(i) - low >= best * (1 + 1e-9))
        node.allowed[size_t(i)] = 0;
      else
        spread += x[size_t(i)] * (1 - x[size_t(i)]) * (1e-12 * best + q_(i, i)), ++count;
    }
    if (count > 1 && (node.branch < 0 || spread > widest)) node.branch = int(u), widest = spread;
  }
  node.x.assign(x.begin(), x.end());
  return true;
}

Assignment PolicySolver::improve(Assignment z, double budget) const {
  const size_t units = problem_.units.size();
  std::vector<double> h(static_cast<size_t>(first_.back()));
  const auto change = [&](size_t u, int f) {  // of the error, when unit u takes f
    const int64_t a = at(u, z[u]), b = at(u, f);
    return 2 * (h[size_t(b)] - h[size_t(a)]) + q_(a, a) + q_(b, b) - 2 * q_(a, b);
  };
  std::vector<int> used(problem_.shared.size());
  const auto extra = [&](size_t u, int f) {  // cost, when unit u takes f and the others stay
    double c = problem_.units[u][size_t(f)].cost - problem_.units[u][size_t(z[u])].cost;
    const auto &before = shares_[size_t(at(u, z[u]))], &after = shares_[size_t(at(u, f))];
    for (const int s : before)
      if (used[size_t(s)] == 1 && std::find(after.begin(), after.end(), s) == after.end())
        c -= problem_.shared[size_t(s)].cost;
    for (const int s : after)
      if (used[size_t(s)] == 0) c += problem_.shared[size_t(s)].cost;
    return c;
  };
  for (;;) {
    std::fill(h.begin(), h.end(), 0);
    std::fill(used.begin(), used.end(), 0);
    for (size_t u = 0; u < units; ++u) {
      for (int64_t j = 0; j < first_.back(); ++j) h[size_t(j)] += q_(at(u, z[u]), j);
      for (const int s : shares_[size_t(at(u, z[u]))]) ++used[size_t(s)];
    }
    const double cost = cost_of(problem_, z), least = 1e-12 * error_of(problem_, z);
    struct Move {
      size_t unit;
      int to;
      double error, cost;
    };
    std::vector<Move> moves;
    for (size_t u = 0; u < units; ++u)
      for (int f = 0; f < int(problem_.units[u].size()); ++f)
        if (f != z[u]) moves.push_back({u, f, change(u, f), extra(u, f)});
    double best = -least;
    Assignment next;
    const auto take = [&](double error, const Move& a, const Move* b) {
      Assignment other = z;
      other[a.unit] = a.to;
      if (b) other[b->unit] = b->to;
      // With shared costs the sum of two extras is not exact, so the pair is priced again.
      if (b && !problem_.shared.empty() && !fits(cost_of(problem_, other), budget)) return;
      best = error;
      next = std::move(other);
    };
    for (const Move& a : moves)
      if (a.error < best && fits(cost + a.cost, budget)) take(a.error, a, nullptr);
    if (next.empty())
      for (size_t i = 0; i < moves.size(); ++i)
        for (size_t j = i + 1; j < moves.size(); ++j) {
          const Move &a = moves[i], &b = moves[j];
          if (a.unit == b.unit || !fits(cost + a.cost + b.cost, budget)) continue;
          const int64_t a0 = at(a.unit, z[a.unit]), a1 = at(a.unit, a.to);
          const int64_t b0 = at(b.unit, z[b.unit]), b1 = at(b.unit, b.to);
          const double error = a.error + b.error + 2 * (q_(a1, b1) - q_(a1, b0) - q_(a0, b1) + q_(a0, b0));
          if (error < best) take(error, a, &b);
        }
    if (next.empty()) return z;
    z = std::move(next);
  }
}

Solution PolicySolver::solve(double budget, const SolveOptions& options) const {
  Assignment best = cheapest(problem_);
  check(fits(cost_of(problem_, best), budget), "policy search: the budget is ", budget,
        ", the cheapest policy costs ", cost_of(problem_, best));
  double error = kInfinity;
  const auto offer = [&](const Assignment& z) {
    if (!fits(cost_of(problem_, z), budget)) return;
    const Assignment better = improve(z, budget);
    if (const double e = error_of(problem_, better); e < error) error = e, best = better;
  };
  offer(best);
  if (!options.start.empty()) offer(options.start);
  if (const Assignment z = most_accurate(problem_); fits(cost_of(problem_, z), budget)) offer(z);

  // What single and paired changes cannot reach, a few random ones and then those often do.
  Rng kicks{0x6b69636bu};
  for (int64_t i = 0; i < options.kicks; ++i) {
    Assignment z = best;
    for (int k = 0; k < 4; ++k) {
      const size_t u = size_t(kicks.below(int64_t(z.size())));
      z[u] = int(kicks.below(int64_t(problem_.units[u].size())));
    }
    offer(z);
  }

  const auto worse = [](const Node& a, const Node& b) {
    return a.bound != b.bound ? a.bound > b.bound : a.order > b.order;
  };
  std::priority_queue<Node, std::vector<Node>, decltype(worse)> open(worse);
  Solution out;
  double closed = kInfinity;  // the least bound of a part that was left unfinished
  Assignment rounded;
  const auto visit = [&](Node node, int64_t iterations) {
    ++out.nodes;
    node.order = out.nodes;
    if (!bound(node, budget, error, iterations, rounded)) return;
    if (out.nodes <= 64 || out.nodes % 16 == 0) offer(rounded);
    if (node.branch >= 0) {
      open.push(std::move(node));
      return;
    }
    Assignment z(problem_.units.size());
    for (size_t u = 0; u < z.size(); ++u)
      while (!node.allowed[size_t(at(u, z[u]))]) ++z[u];
    offer(z);
  };
  visit({std::vector<char>(size_t(first_.back()), 1), 0, {}, -1, 0}, 400);
  while (!open.empty() && open.top().bound < error * (1 - options.gap)) {
    if (out.nodes >= options.nodes) {
      closed = open.top().bound;
      break;
    }
    const Node node = open.top();
    open.pop();
    const size_t u = size_t(node.branch);
    for (int64_t i = first_[u]; i < first_[u + 1]; ++i) {
      if (!node.allowed[size_t(i)]) continue;
      Node child = node;
      for (int64_t j = first_[u]; j < first_[u + 1]; ++j) child.allowed[size_t(j)] = j == i;
      visit(std::move(child), 40);
    }
  }
  if (!open.empty()) closed = std::min(closed, open.top().bound);
  out.choice = best;
  out.cost = cost_of(problem_, best);
  out.error = error;
  out.bound = std::max(0.0, std::min(closed, error));
  return out;
}

std::vector<Solution> pareto_front(const PolicySolver& solver, int64_t count, const std::vector<double>& more,
                                   const SolveOptions& options) {
  const PolicyProblem& p = solver.problem();
  const double low = cost_of(p, cheapest(p)), high = std::max(low, cost_of(p, most_accurate(p)));
  std::vector<double> budgets = more;
  for (int64_t i = 0; i < count; ++i)
    budgets.push_back(i + 1 == count ? high : low + (high - low) * double(i) / double(count - 1));
  std::sort(budgets.begin(), budgets.end());
  std::vector<Solution> front;
  SolveOptions with = options;
  for (const double budget : budgets) {
    if (!fits(low, budget)) continue;
    Solution s = solver.solve(budget, with);
    with.start = s.choice;
    if (front.empty() || s.error < front.back().error) {
      // A later policy of the same cost with less error takes the place of the one before.
      if (!front.empty() && s.cost <= front.back().cost)
        front.back() = std::move(s);
      else
        front.push_back(std::move(s));
    }
  }
  return front;
}

}  // namespace rivulet
