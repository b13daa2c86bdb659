#include "quant/report.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "quant/plot.h"
#include "tensor/safetensors.h"

namespace rivulet {
namespace {

constexpr const char* kOurs = "#0b62a8";
constexpr const char* kTheirs = "#c2410c";
constexpr const char* kChance = "#8a8f98";
constexpr const char* kGood = "#15803d";

constexpr const char* kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Precision policy</title><style>
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;max-width:1080px;margin:32px auto;padding:0 20px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:34px 0 6px}p{max-width:76ch;margin:6px 0}
.sub{color:#5b626b}svg{max-width:100%;height:auto}.grid{stroke:#e6e8eb}.tick{font-size:11.5px;fill:#5b626b}
.axis{font-size:12.5px;fill:#1b1f24}.key{font-size:12px;fill:#1b1f24}.mark{font-size:10.5px}
table{border-collapse:collapse;font-size:13.5px;margin:8px 0}th,td{padding:3px 12px 3px 0;text-align:right;
border-bottom:1px solid #e6e8eb}th{font-weight:600;border-bottom-color:#b9bec5}td:first-child,th:first-child{text-align:left}
.good{color:#15803d}.bad{color:#b91c1c}.row{display:flex;flex-wrap:wrap;gap:24px}
</style></head><body>
)";

double relative(double square) { return std::sqrt(std::max(0.0, square)); }

std::string percent(double share) { return short_number(100 * share) + " %"; }

class Table {
 public:
  explicit Table(const std::vector<std::string>& heads) {
    text_ << "<table><tr>";
    for (const std::string& h : heads) text_ << "<th>" << html_escape(h) << "</th>";
    text_ << "</tr>\n";
  }
  // Cells are HTML.
  void row(const std::vector<std::string>& cells) {
    text_ << "<tr>";
    for (const std::string& c : cells) text_ << "<td>" << c << "</td>";
    text_ << "</tr>\n";
  }
  std::string str() const { return text_.str() + "</table>\n"; }

 private:
  std::ostringstream text_;
};

std::string interval_text(const Interval& i) {
  if (!i.defined()) return "one video: none";
  const char* mark = i.high < 0 ? "good" : i.low > 0 ? "bad" : "";
  return std::string("<span class=\"") + mark + "\">" + short_number(i.low) + " to " + short_number(i.high) +
         "</span>";
}

// What stands in a cell of the heat map.
std::string short_name(const Choice& c) {
  std::string name = name_of(c);
  for (const auto& [from, to] : {std::pair<const char*, const char*>{"bf16", "16"},
                                 {"mxfp8", "mx8"},
                                 {"nvfp4", "4"},
                                 {"fp8_tensor", "8t"},
                                 {"fp8", "8"},
                                 {"_46", "/6"},
                                 {"+lr", "+"}})
    if (const size_t at = name.find(from); at != std::string::npos)
      name.replace(at, std::string(from).size(), to);
  return name;
}

// Rows of the Gram matrix before unit u.
std::vector<int64_t> first_rows(const SearchResult& r) {
  std::vector<int64_t> first = {0};
  for (const PolicyUnit& unit : r.units) first.push_back(first.back() + int64_t(unit.choices.size()) - 1);
  return first;
}

std::string front_plot(const SearchResult& r) {
  std::vector<Point> front, bound, measured, baselines, chance;
  std::vector<double> xs, ys;
  const auto share = [&](double cost) { return 100 * cost / r.full_cost; };
  for (const Solution& s : r.front) {
    front.push_back({share(s.cost), relative(s.error), "predicted " + short_number(relative(s.error))});
    bound.push_back({share(s.cost), relative(s.bound)});
    xs.push_back(share(s.cost));
    ys.push_back(relative(s.error));
  }
  for (const PolicyResult& p : r.policies) {
    if (p.held_out.empty()) continue;
    const double error = mean_root(p.held_out);
    const Point point{share(p.cost), error,
                      p.name + ": " + short_number(error) + " at " + short_number(share(p.cost)) + " %"};
    (p.kind == "baseline" ? baselines : p.kind == "random" ? chance : measured).push_back(point);
    xs.push_back(point.x);
    ys.push_back(point.y);
  }
  // Near the end of all bf16 the error falls to nothing: two decades and a half are enough to see.
  double highest = 0;
  for (const double y : ys) highest = std::max(highest, y);
  std::erase_if(ys, [&](double y) { return y < highest / 300; });
  Plot plot(axis_for("cost, % of all bf16 (" + r.cost.name() + ": " + r.cost.source() + ")", xs),
            axis_for("relative RMS error", ys, true), 900, 460);
  plot.stairs(front, kOurs, "front, predicted on the calibration clips");
  plot.line(bound, kChance, "no policy is below, as predicted", true);
  plot.dots(measured, kOurs, "front, measured on held-out clips", 4.5);
  plot.dots(chance, kChance, "random policies of equal cost", 3.5);
  plot.dots(baselines, kTheirs, "others, measured on held-out clips", 5);
  for (size_t i = 0; i < baselines.size(); ++i) {
    std::string name = baselines[i].title.substr(0, baselines[i].title.find(':'));
    plot.label(baselines[i].x, baselines[i].y, name);
  }
  return plot.svg();
}

std::string heat_map(const SearchResult& r) {
  HeatMap map;
  std::map<std::string, size_t> rows, columns;
  const auto place = [](std::map<std::string, size_t>& known, std::vector<std::string>& names,
                        const std::string& name) {
    const auto [at, fresh] = known.emplace(name, names.size());
    if (fresh) names.push_back(name);
    return at->second;
  };
  const auto column_of = [](const PolicyUnit& u) {
    return std::to_string(u.block) +
           (u.all_t() ? "" : "@" + short_number(std::round((u.t_low + u.t_high) / 2)));
  };
  for (const PolicyUnit& u : r.units)
    place(rows, map.rows, name_of(u.layer)), place(columns, map.columns, column_of(u));
  const size_t wide = map.columns.size();
  map.values.assign(map.rows.size(), std::vector<double>(wide, std::nan("")));
  map.titles.assign(map.rows.size(), std::vector<std::string>(wide));
  map.marks = map.titles;
  const std::vector<int64_t> first = first_rows(r);
  double low = INFINITY, high = 0;
  std::vector<double> worst(r.units.size(), 0);
  for (size_t u = 0; u < r.units.size(); ++u) {
    for (int64_t i = first[u]; i < first[u + 1]; ++i) worst[u] = std::max(worst[u], r.own[size_t(i)]);
    if (worst[u] > 0) low = std::min(low, worst[u]), high = std::max(high, worst[u]);
  }
  for (size_t u = 0; u < r.units.size(); ++u) {
    const PolicyUnit& unit = r.units[u];
    const size_t row = rows[name_of(unit.layer)], column = columns[column_of(unit)];
    std::string title = unit.name();
    for (size_t f = 1; f < unit.choices.size(); ++f)
      title += "\n" + name_of(unit.choices[f]) + ": " + short_number(r.own[size_t(first[u]) + f - 1]);
    const double span = high > low ? std::log(high / low) : 1;
    map.values[row][column] = worst[u] > 0 ? std::log(worst[u] / low) / span : 0;
    map.titles[row][column] = title;
    map.marks[row][column] = short_name(unit.choices[size_t(r.policies[r.chosen].assignment[u])]);
  }
  return svg_heat_map(map);
}

std::string scatter(const SearchResult& r, double RandomPolicy::*predicted, double RandomPolicy::*measured,
                    const std::string& what) {
  std::vector<Point> points;
  std::vector<double> values;
  for (const RandomPolicy& p : r.random) {
    points.push_back({relative(p.*predicted), relative(p.*measured),
                      short_number(100 * p.cost / r.full_cost) + " % of the cost"});
    values.push_back(points.back().x);
    values.push_back(points.back().y);
  }
  const Axis axis = axis_for("", values, true);
  Axis x = axis, y = axis;
  x.label = "predicted relative RMS error";
  y.label = "measured, " + what;
  Plot plot(x, y, 500, 400);
  plot.names_below();
  plot.line({{axis.low, axis.low}, {axis.high, axis.high}}, kChance, "as predicted", true);
  plot.dots(points, kOurs, "random policies", 3.5);
  return plot.svg();
}

std::string fit_table(const SearchResult& r) {
  Table table({"prediction", "measured", "R²", "slope", "through 0", "R² as it is", "rank"});
  const auto row = [&](const char* prediction, const char* measured, const Agreement& a) {
    table.row({prediction, measured, short_number(a.r2), short_number(a.slope),
               short_number(a.slope_through_zero), short_number(a.r2_as_is), short_number(a.rank)});
  };
  row("all products, free-running", "the same clips, free-running", r.free);
  row("all products, teacher-forced", "the same clips, teacher-forced", r.forced);
  row("all products, free-running", "held-out clips, free-running", r.held_out);
  row("without interactions", "the same clips, free-running", r.diagonal);
  return table.str();
}

std::string comparison_table(const SearchResult& r) {
  Table table({"against", "cost, % of bf16", "its error", "ours at that cost", "ours / its",
               "difference, 95 %", "p (sign flips, Holm)"});
  for (const Comparison& c : r.comparisons)
    table.row({html_escape(c.with), short_number(100 * c.cost / r.full_cost), short_number(c.theirs),
               short_number(c.ours), short_number(c.ours / c.theirs), interval_text(c.difference),
               short_number(c.p)});
  return table.str();
}

// Predictions are means of squares, so the measured columns are too.
std::string policy_table(const SearchResult& r) {
  Table table({"policy", "cost, % of bf16", "predicted", "no lower than", "without interactions",
               "measured, calibration", "measured, held out"});
  for (const PolicyResult& p : r.policies) {
    if (p.kind == "random") continue;
    table.row({html_escape(p.name), short_number(100 * p.cost / r.full_cost),
               short_number(relative(p.predicted)), p.bound >= 0 ? short_number(relative(p.bound)) : "",
               short_number(relative(p.predicted_diagonal)), short_number(root_mean(p.calibration)),
               short_number(root_mean(p.held_out))});
  }
  return table.str();
}

// The pairs of units whose errors help or hurt each other most under the chosen policy.
std::string interaction_table(const SearchResult& r) {
  struct Pair {
    size_t a, b;
    double product, alike;
  };
  const std::vector<int64_t> first = first_rows(r);
  const PolicyResult& chosen = r.policies[r.chosen];
  const auto row = [&](size_t u) { return first[u] + chosen.assignment[u] - 1; };
  std::vector<Pair> pairs;
  double squares = 0, plus = 0, minus = 0;
  for (size_t a = 0; a < r.units.size(); ++a) {
    if (chosen.assignment[a] == 0) continue;
    squares += r.gram(row(a), row(a));
    for (size_t b = a + 1; b < r.units.size(); ++b) {
      if (chosen.assignment[b] == 0) continue;
      const double p = 2 * r.gram(row(a), row(b));
      const double size = std::sqrt(r.gram(row(a), row(a)) * r.gram(row(b), row(b)));
      (p > 0 ? plus : minus) += p;
      pairs.push_back({a, b, p, size > 0 ? 0.5 * p / size : 0});
    }
  }
  std::sort(pairs.begin(), pairs.end(),
            [](const Pair& x, const Pair& y) { return std::abs(x.product) > std::abs(y.product); });
  std::ostringstream out;
  out << "<p>Of the chosen policy's predicted squared error, the squares of single layers make "
      << percent(squares / std::max(1e-300, chosen.predicted)) << ", products above zero "
      << percent(plus / std::max(1e-300, chosen.predicted)) << " and products below zero "
      << percent(minus / std::max(1e-300, chosen.predicted)) << ".</p>\n";
  Table table({"pair", "share of the squared error", "correlation"});
  for (size_t i = 0; i < std::min<size_t>(pairs.size(), 8); ++i)
    table.row({r.units[pairs[i].a].name() + " with " + r.units[pairs[i].b].name(),
               percent(pairs[i].product / std::max(1e-300, chosen.predicted)), short_number(pairs[i].alike)});
  return out.str() + table.str();
}

Json interval_json(const Interval& i) {
  if (!i.defined()) return {{"mean", i.mean}, {"ci95", nullptr}};
  return {{"mean", i.mean}, {"ci95", {i.low, i.high}}};
}

Json agreement_json(const Agreement& a) {
  return {{"policies", a.count},
          {"r2", a.r2},
          {"slope", a.slope},
          {"intercept", a.intercept},
          {"slope_through_zero", a.slope_through_zero},
          {"r2_as_is", a.r2_as_is},
          {"rank", a.rank}};
}

Json choices_json(const SearchResult& r, const Assignment& z) {
  Json out = Json::object();
  for (size_t u = 0; u < z.size(); ++u) out[r.units[u].name()] = name_of(r.units[u].choices[size_t(z[u])]);
  return out;
}

Policy policy_of(const SearchResult& r, const Assignment& z, const std::string& name) {
  Policy policy;
  policy.name = name;
  for (size_t u = 0; u < z.size(); ++u) {
    const PolicyUnit& unit = r.units[u];
    const Choice& choice = unit.choices[size_t(z[u])];
    if (!choice.plain())
      policy.rules.push_back({{unit.layer}, {unit.block}, unit.t_low, unit.t_high, choice});
  }
  return policy;
}

}  // namespace

Json to_json(const SearchResult& r) {
  Json j = {{"kind", "rivulet precision search"},
            {"schema", 1},
            {"model", r.model},
            {"cost", {{"name", r.cost.name()}, {"source", r.cost.source()}, {"unit", r.cost.unit()}}},
            {"all_bf16_cost", r.full_cost},
            {"solved_for", r.solved_forced ? "teacher-forced errors" : "free-running errors"},
            {"setting", r.provenance},
            {"chosen", r.policies[r.chosen].name},
            {"agreement",
             {{"free", agreement_json(r.free)},
              {"forced", agreement_json(r.forced)},
              {"held_out", agreement_json(r.held_out)},
              {"without_interactions", agreement_json(r.diagonal)}}}};
  for (const SubjectClip& c : r.clips)
    j["clips"].push_back({{"clip", c.name}, {"instruction", c.instruction}, {"held_out", c.held_out}});
  const std::vector<int64_t> first = first_rows(r);
  for (size_t u = 0; u < r.units.size(); ++u) {
    Json errors = Json::object();
    for (size_t f = 1; f < r.units[u].choices.size(); ++f)
      errors[name_of(r.units[u].choices[f])] = r.own[size_t(first[u]) + f - 1];
    j["relrmse_alone"][r.units[u].name()] = errors;
  }
  for (const Solution& s : r.front)
    j["front"].push_back({{"cost", s.cost},
                          {"predicted_relrmse", relative(s.error)},
                          {"bound_relrmse", relative(s.bound)},
                          {"gap", s.gap()}});
  for (const PolicyResult& p : r.policies) {
    Json row = {{"name", p.name},
                {"kind", p.kind},
                {"cost", p.cost},
                {"predicted_relrmse", relative(p.predicted)},
                {"predicted_without_interactions", relative(p.predicted_diagonal)}};
    if (p.bound >= 0) row["bound_relrmse"] = relative(p.bound);
    Json each = Json::array();
    for (const double e : p.held_out) each.push_back(relative(e));
    row["held_out_relrmse"] = each;
    Json own = Json::array();
    for (const double e : p.calibration) own.push_back(relative(e));
    row["calibration_relrmse"] = own;
    row["choices"] = choices_json(r, p.assignment);
    j["policies"].push_back(row);
  }
  for (const Comparison& c : r.comparisons)
    j["comparisons"].push_back({{"with", c.with},
                                {"cost", c.cost},
                                {"ours", c.ours},
                                {"theirs", c.theirs},
                                {"difference", interval_json(c.difference)},
                                {"p_holm", c.p}});
  for (const RandomPolicy& p : r.random)
    j["random"].push_back({{"cost", p.cost},
                           {"predicted_free", p.predicted_free},
                           {"free", p.free},
                           {"predicted_forced", p.predicted_forced},
                           {"forced", p.forced},
                           {"without_interactions", p.diagonal_free},
                           {"held_out", p.held_out}});
  return j;
}

std::string html_report(const SearchResult& r) {
  const PolicyResult& chosen = r.policies[r.chosen];
  std::ostringstream out;
  int64_t held = 0;
  std::vector<int64_t> videos;
  for (const SubjectClip& c : r.clips)
    if (c.held_out) ++held, videos.push_back(c.video);
  std::sort(videos.begin(), videos.end());
  videos.erase(std::unique(videos.begin(), videos.end()), videos.end());
  double gap = 0;
  for (const Solution& s : r.front)
    gap = std::max(gap, relative(s.error) > 0 ? 1 - relative(s.bound) / relative(s.error) : 0);
  out << kHead << "<h1>Precision policy for " << html_escape(r.model) << "</h1>\n<p class=\"sub\">"
      << r.units.size() << " units, " << r.gram.n << " options beside bf16; " << r.clips.size() - size_t(held)
      << " clips to calibrate on, " << held << " held out, cut from " << videos.size()
      << (videos.size() == 1 ? " video" : " videos") << "; solved for "
      << (r.solved_forced ? "teacher-forced" : "free-running")
      << " errors. Costs: " << html_escape(r.cost.name()) << " (" << r.cost.source() << "), in "
      << html_escape(r.cost.unit()) << ". " << html_escape(r.cost.note()) << "</p>\n";
  out << "<p>The chosen policy costs <b>" << percent(chosen.cost / r.full_cost)
      << "</b> of all bf16. Predicted relative RMS error <b>" << short_number(relative(chosen.predicted))
      << "</b>, measured on the held-out clips <b>" << short_number(mean_root(chosen.held_out))
      << "</b>. Along the front no policy can be predicted more than " << percent(gap)
      << " lower than what was found.</p>\n";
  out << "<h2>Cost against error</h2>\n" << front_plot(r);
  out << "<h2>Against others</h2>\n<p>Relative RMS error against the model as it is, mean over the held-out "
         "clips. Each row compares a policy "
         "with the search's own of no more than its cost, clip by clip; intervals resample whole videos. "
         "Green excludes 0 in our favour.</p>\n"
      << comparison_table(r);
  out << "<h2>Every layer</h2>\n<p>Shade: relative RMS error of the worst choice of that layer alone, on a "
         "logarithmic scale. Text: what the chosen "
         "policy takes (16: bf16, 8: fp8, mx8: mxfp8, 4: nvfp4, 4/6: its better scales, +: a low-rank "
         "branch). Point at a cell for all of them.</p>\n"
      << heat_map(r);
  if (!r.random.empty()) {
    out << "<h2>Do errors add up?</h2>\n<p>" << r.random.size()
        << " random policies, from the cheapest to all bf16. The fit is of squared errors.</p>\n<div "
           "class=\"row\">"
        << scatter(r, &RandomPolicy::predicted_free, &RandomPolicy::free, "free-running")
        << scatter(r, &RandomPolicy::predicted_free, &RandomPolicy::held_out, "held-out clips")
        << scatter(r, &RandomPolicy::predicted_forced, &RandomPolicy::forced, "teacher-forced")
        << scatter(r, &RandomPolicy::diagonal_free, &RandomPolicy::free, "without interactions") << "</div>\n"
        << fit_table(r);
  }
  out << "<h2>Every policy that was measured</h2>\n<p>Relative errors, roots of the mean square over the "
         "clips. The solver looks for "
         "errors that cancel, so what it finds can be worse than predicted: compare the columns.</p>\n"
      << policy_table(r);
  out << "<h2>Interactions</h2>\n" << interaction_table(r);
  out << "<h2>Clips</h2>\n";
  Table clips({"clip", "instruction", "part"});
  for (const SubjectClip& c : r.clips)
    clips.row({html_escape(c.name), html_escape(c.instruction), c.held_out ? "held out" : "calibration"});
  out << clips.str() << "</body></html>\n";
  return out.str();
}

void write_results(const SearchResult& r, const std::string& dir) {
  const PolicyResult& chosen = r.policies[r.chosen];
  const Json all = to_json(r);
  Policy policy =
      policy_of(r, chosen.assignment,
                r.model + " at " + short_number(100 * chosen.cost / r.full_cost) + " % of " + r.cost.name());
  policy.notes = {{"cost", {{"file", r.cost.json()}, {"policy", chosen.cost}, {"all_bf16", r.full_cost}}},
                  {"predicted_relrmse", relative(chosen.predicted)},
                  {"held_out_relrmse", mean_root(chosen.held_out)},
                  {"agreement", all["agreement"]},
                  {"setting", r.provenance}};
  if (chosen.bound >= 0) policy.notes["bound_relrmse"] = relative(chosen.bound);
  policy.write(dir + "/policy.json");
  Json front = Json::array();
  for (const Solution& s : r.front)
    front.push_back(
        {{"cost", s.cost},
         {"share_of_bf16", s.cost / r.full_cost},
         {"predicted_relrmse", relative(s.error)},
         {"bound_relrmse", relative(s.bound)},
         {"policy", policy_of(r, s.choice, r.model + " at " + short_number(100 * s.cost / r.full_cost) + " %")
                        .to_json()}});
  write_file(dir + "/front.json", front.dump(1) + "\n");
  write_file(dir + "/result.json", all.dump(1) + "\n");
  write_file(dir + "/report.html", html_report(r));
}

}  // namespace rivulet
