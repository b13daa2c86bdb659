#include "quant/search.h"

#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "models/editor.h"
#include "quant/edit_subject.h"
#include "quant/measure_cost.h"
#include "quant/plot.h"

using namespace rivulet;
namespace fs = std::filesystem;

namespace {

struct Folder {
  std::string path = (fs::temp_directory_path() /
                      ("policy_search_" + std::to_string(::getpid()) + "_" + std::to_string(std::rand())))
                         .string();
  ~Folder() { fs::remove_all(path); }
};

constexpr int64_t kSize = 400;

// A network whose result is exactly the sum of what its layers do to it: an error vector for each unit,
// longer in fewer bits, drawn anew for each clip; the memory makes the free-running one 1.5 times as long.
Subject additive_subject(int64_t depth, const std::vector<Layer>& layers) {
  Subject s;
  s.name = "sum";
  s.fingerprint = "1";
  s.depth = depth;
  s.times = {1000, 500, 0};
  for (int64_t block = 0; block < depth; ++block)
    for (const Layer layer : layers)
      s.layers.push_back({block, layer, {64, 32 * (block + 1), 32}, 3, block, 32});
  for (int64_t clip = 0; clip < 6; ++clip)
    s.clips.push_back({"clip " + std::to_string(clip), "edit", clip / 2, clip >= 3});
  s.edit = [depth, layers](size_t clip, const Policy& policy, bool forced) {
    Rng rng{clip + 1};
    const Tensor base = randn({kSize}, rng);
    EditedClip out;
    const Tensor free = base.clone(), forced_one = base.clone();
    for (int64_t block = 0; block < depth; ++block)
      for (const Layer layer : layers) {
        Rng mine = Rng{7}.fork(uint64_t(block * 100 + int64_t(layer)));
        const Tensor shared = randn({kSize}, mine);
        Rng own = mine.fork(clip);
        const Tensor error = randn({kSize}, own);
        error.add_in_place(shared, 2);
        const Choice c = policy.at(block, layer, 500);
        const double size = c.plain() ? 0 : c.format == Format::fp8 ? 0.001 : 0.005;
        const double sign = c.format == Format::mxfp8 ? -1 : 1;
        free.add_in_place(error, 1.5 * sign * size * double(block + 1));
        forced_one.add_in_place(error, sign * size * double(block + 1));
      }
    out.free = {free};
    if (forced) out.forced = {forced_one};
    return out;
  };
  s.fisher = [](size_t, const std::vector<PolicyUnit>& units) {
    std::vector<double> scores;
    for (const PolicyUnit& u : units)
      for (size_t f = 1; f < u.choices.size(); ++f) scores.push_back(double(f) * double(u.block + 1));
    return scores;
  };
  return s;
}

CostModel bits() { return CostModel::read(std::string(RIVULET_SOURCE_DIR) + "/quant/costs/bits.json"); }

SearchOptions small_search(const std::string& dir) {
  SearchOptions o;
  o.dir = dir;
  o.layers = {Layer::sa_q, Layer::ffn_in};
  o.choices = {Choice{Format::fp8}, Choice{Format::nvfp4}};
  o.random = 60;
  o.equal = 3;
  o.front = 9;
  o.verified = 3;
  return o;
}

std::string all_results(const std::string& dir) {
  return read_file(dir + "/policy.json") + read_file(dir + "/front.json") + read_file(dir + "/result.json") +
         read_file(dir + "/report.html");
}

}  // namespace

TEST_CASE("where errors add up exactly, the search predicts every policy") {
  const Folder folder;
  const Subject subject = additive_subject(3, {Layer::sa_q, Layer::ffn_in});
  const SearchResult r = search_policy(subject, bits(), small_search(folder.path));
  CHECK(r.gram.n == 12);
  REQUIRE(r.random.size() == 60);
  CHECK(r.free.r2 > 0.999999);
  CHECK(r.free.slope == doctest::Approx(1).epsilon(1e-4));
  CHECK(r.forced.slope == doctest::Approx(1).epsilon(1e-4));
  CHECK(r.diagonal.r2_as_is < 0.999);  // the layers' errors are not orthogonal
  CHECK(r.random[5].predicted_free == doctest::Approx(2.25 * r.random[5].predicted_forced).epsilon(1e-4));
  for (const PolicyResult& p : r.policies) {
    double mean = 0;
    for (const double e : p.calibration) mean += e / double(p.calibration.size());
    CHECK(p.predicted == doctest::Approx(mean).epsilon(1e-4));
    CHECK(p.cost <= r.full_cost * (1 + 1e-12));
    if (p.bound >= 0) CHECK(p.bound <= p.predicted * (1 + 1e-9));
  }
  // Its own policies are no dearer than what they are compared with, and no worse on the calibration clips.
  for (const Comparison& c : r.comparisons) CHECK(c.ours > 0);
  const auto named = [&](const std::string& name) {
    for (const PolicyResult& p : r.policies)
      if (p.name == name) return p;
    FAIL("no policy " << name);
    return PolicyResult{};
  };
  for (const char* name : {"all fp8", "all nvfp4", "paper"}) {
    const PolicyResult theirs = named(name), ours = named(std::string("search at the cost of ") + name);
    CHECK(ours.cost <= theirs.cost * (1 + 1e-9));
    CHECK(ours.predicted <= theirs.predicted * (1 + 1e-9));
  }
  const PolicyResult held = named("search with the choices of paper");
  CHECK(held.cost <= named("paper").cost * (1 + 1e-9));
  CHECK(held.predicted <= named("paper").predicted * (1 + 1e-9));
  CHECK(held.predicted >= named("search at the cost of paper").bound);
  CHECK(named("without interactions").predicted >= named("search at the cost of paper").predicted);
  CHECK(named("diagonal Fisher").cost <= named("paper").cost * (1 + 1e-9));
  // The files say the same.
  const Policy policy = Policy::read(folder.path + "/policy.json");
  const PolicySpace space(3, {}, {Layer::sa_q, Layer::ffn_in}, small_search("").choices);
  CHECK(space.assignment(policy) == r.policies[r.chosen].assignment);
  CHECK(read_json(folder.path + "/front.json").size() == r.front.size());
  const std::string html = read_file(folder.path + "/report.html");
  CHECK(html.find("<svg") != std::string::npos);
  CHECK(html.find("http") == std::string::npos);  // nothing comes from elsewhere
  CHECK(html.find("nan") == std::string::npos);
}

TEST_CASE("a search stopped anywhere and gone on with ends with the same files") {
  const Folder whole, parts;
  Subject subject = additive_subject(2, {Layer::sa_q, Layer::ffn_in});
  SearchOptions o = small_search(whole.path);
  o.random = 6;
  search_policy(subject, bits(), o);
  int64_t runs = 0;
  std::atomic<bool> stop = false;
  Subject counted = subject;
  counted.edit = [&](size_t clip, const Policy& policy, bool forced) {
    if (++runs % 23 == 0) stop = true;
    return subject.edit(clip, policy, forced);
  };
  SearchOptions again = o;
  again.dir = parts.path;
  again.stop = &stop;
  int stops = 0;
  for (bool done = false; !done; stop = false) {
    try {
      search_policy(counted, bits(), again);
      done = true;
    } catch (const Stopped&) {
      REQUIRE(++stops < 50);
      // A kill may tear the last line that was being written.
      std::ofstream(parts.path + "/measured.jsonl", std::ios::app) << "{\"key\": \"held out [";
    }
  }
  CHECK(stops > 2);
  CHECK(all_results(parts.path) == all_results(whole.path));
  // What is there is not measured again, under another cost either, but another model is refused.
  again.stop = nullptr;
  runs = 0;
  const CostModel model = CostModel::read(std::string(RIVULET_SOURCE_DIR) + "/quant/costs/rtx5090.json");
  again.random = 2;
  search_policy(counted, model, again);
  CHECK(runs < 150);
  counted.fingerprint = "2";
  CHECK_THROWS_WITH_AS(search_policy(counted, bits(), again), doctest::Contains("another fingerprint"),
                       Error);
}

TEST_CASE("brook in miniature: the real network's errors add up") {
  const Folder folder;
  std::vector<EditClip> clips;
  Rng rng{3};
  for (int64_t i = 0; i < 2; ++i) {
    Tensor frames({6, 32, 32, 3}, DType::u8);
    for (int64_t p = 0; p < frames.numel(); ++p)  // a slope with noise on it
      frames.data<uint8_t>()[p] = uint8_t(40 + (p / 96) % 32 * 4 + (p % 96) + rng.below(16));
    clips.push_back({{"made up", i ? "turn it into a pencil sketch" : "make it look like sunset", i, i == 1},
                     frames,
                     uint64_t(i)});
  }
  const std::string dir = std::string(RIVULET_SOURCE_DIR) + "/models/brook";
  const Subject subject = edit_subject(EditModel::load(dir), clips, {});
  SearchOptions o = small_search(folder.path);
  o.layers = {Layer::sa_o, Layer::scores, Layer::ca_kv, Layer::ffn_in, Layer::ffn_t};
  o.random = 8;
  o.equal = 1;
  o.verified = 1;
  const SearchResult r = search_policy(subject, bits(), o);
  CHECK(r.gram.n == 4 * 5 * 2 + 1);
  for (const double own : r.own) CHECK(own > 1e-6);  // every choice changes the result
  CHECK(r.free.rank > 0.8);
  CHECK(r.free.r2 > 0.7);
  const PolicyResult& chosen = r.policies[r.chosen];
  CHECK(root_mean(chosen.calibration) < 2 * std::sqrt(chosen.predicted));
  CHECK(subject.edit(0, Policy{}, false).free[1].to_vector() ==
        subject.edit(0, Policy{}, true).forced[1].to_vector());
}

TEST_CASE("the model of an RTX 5090 gives the published table") {
  const CostModel m = CostModel::read(std::string(RIVULET_SOURCE_DIR) + "/quant/costs/rtx5090.json");
  CHECK(m.source() == "model");
  const auto us = [&](int64_t rows, int64_t in, int64_t out, Format f) {
    return m.product({rows, out, in}, Choice{f});
  };
  struct Row {
    int64_t rows, in, out;
    double bf16, fp8, mxfp8, nvfp4;
  };
  for (const Row& r :
       {Row{880, 2240, 2240, 70.4, 36.9, 19.2, 12.4}, Row{2640, 2240, 2240, 208.3, 107.8, 54.7, 34.2},
        Row{2640, 2240, 13440, 897.5, 462.3, 231.9, 143.3},
        Row{2640, 6720, 2240, 621.8, 314.6, 158.1, 99.7}}) {
    CHECK(std::abs(us(r.rows, r.in, r.out, Format::bf16) - r.bf16) < 0.06);
    CHECK(std::abs(us(r.rows, r.in, r.out, Format::fp8) - r.fp8) < 0.06);
    CHECK(std::abs(us(r.rows, r.in, r.out, Format::mxfp8) - r.mxfp8) < 0.06);
    CHECK(std::abs(us(r.rows, r.in, r.out, Format::nvfp4) - r.nvfp4) < 0.06);
    CHECK(us(r.rows, r.in, r.out, Format::nvfp4_46) == us(r.rows, r.in, r.out, Format::nvfp4));
  }
  const ProductShape s{100, 64, 32};
  CHECK(bits().product(s, Choice{}) == doctest::Approx(2e-9 * 100 * 64 * 32));
  CHECK(bits().product(s, Choice{Format::nvfp4, 8}) ==
        doctest::Approx(2e-9 * (100 * 64 * 32 * 4.5 / 16 + 100 * 8 * 32 + 100 * 64 * 8)));
  CHECK(bits().copy(100, 32, Choice{Format::fp8}) == 0);
  CHECK(m.copy(1000, 32, Choice{Format::fp8}) == doctest::Approx(32000 / 1521.5e3));
  CHECK_FALSE(m.knows(Choice{Format::fp8, 0, true}));
}

TEST_CASE("cost tables: what was not measured is not guessed") {
  const Json table = {{"name", "here"},
                      {"kind", "table"},
                      {"source", "measured"},
                      {"unit", "us"},
                      {"products",
                       {{{"rows", 4}, {"out", 8}, {"in", 16}, {"format", "bf16"}, {"us", 3.0}},
                        {{"rows", 4}, {"out", 8}, {"in", 16}, {"format", "fp8"}, {"us", 2.0}}}},
                      {"copies", {{{"rows", 4}, {"in", 16}, {"format", "fp8"}, {"us", 0.5}}}}};
  const CostModel m = CostModel::from_json(table, "table");
  CHECK(m.product({4, 8, 16}, Choice{Format::fp8}) == 2);
  CHECK(m.copy(4, 16, Choice{Format::fp8}) == 0.5);
  CHECK(m.knows(Choice{Format::fp8}));
  CHECK_FALSE(m.knows(Choice{Format::nvfp4}));
  CHECK_THROWS_AS(m.product({4, 8, 17}, Choice{Format::fp8}), Error);
  CHECK_THROWS_AS(m.copy(5, 16, Choice{Format::fp8}), Error);
  Json bad = table;
  bad["source"] = "guess";
  CHECK_THROWS_AS(CostModel::from_json(bad, "bad"), Error);
}

TEST_CASE("costs are measured only where the device has a format") {
  const Subject subject = additive_subject(1, {Layer::sa_q});
  CHECK_THROWS_WITH_AS(measure_costs(subject.layers, {Choice{Format::fp8}}, Device::cpu),
                       doctest::Contains("none of the formats"), Error);
}

TEST_CASE("units, policies and the paper's policy") {
  const std::vector<Choice> choices = {Choice{Format::fp8}, Choice{Format::nvfp4}};
  const PolicySpace space(20, {3, 19}, {Layer::sa_q, Layer::scores, Layer::ca_kv, Layer::ffn_in}, choices);
  CHECK(space.size() == 20 * 3 + 2);
  CHECK(space.rows() == 20 * 3 * 2 + 2);
  const Assignment paper = space.assignment(paper_policy(20));
  for (size_t u = 0; u < space.size(); ++u) {
    const PolicyUnit& unit = space.units()[u];
    const int expected = unit.layer == Layer::sa_q     ? 2
                         : unit.layer == Layer::scores ? 0
                         : unit.layer == Layer::ca_kv  ? 1
                         : unit.block <= 5             ? 1
                                                       : 2;
    CHECK(paper[u] == expected);
  }
  CHECK(space.assignment(space.policy(paper, "again")) == paper);
  const Policy shipped =
      Policy::read(std::string(RIVULET_SOURCE_DIR) + "/models/sana_streaming/policies/paper.json");
  CHECK(space.assignment(shipped) == paper);
  Policy foreign;
  foreign.rules = {{{}, {}, 0, 1000, Choice{Format::mxfp8}}};
  CHECK_THROWS_AS(space.assignment(foreign), Error);
  const PolicySpace steps(2, {}, {Layer::sa_q, Layer::ca_kv}, choices, {1000, 743, 0});
  REQUIRE(steps.size() == 2 * (3 + 1));
  CHECK(steps.units()[1].name() == "b0.sa_q.t743");
  Assignment z(steps.size(), 0);
  z[1] = 2;
  const Policy one = steps.policy(z, "one step");
  CHECK(one.at(0, Layer::sa_q, 743).format == Format::nvfp4);
  CHECK(one.at(0, Layer::sa_q, 1000).plain());
  CHECK(one.at(0, Layer::sa_q, 0).plain());
  CHECK(steps.assignment(one) == z);
}

TEST_CASE("charts: text is escaped, numbers are short, every point is drawn") {
  CHECK(html_escape("a < b & \"c\"") == "a &lt; b &amp; &quot;c&quot;");
  CHECK(short_number(0.0012345) == "0.00123");
  CHECK(short_number(12.345) == "12.3");
  CHECK(short_number(4567) == "4567");
  Plot plot(axis_for("x", {1, 10}, true), axis_for("y", {0, 5}));
  plot.dots({{1, 1, "<one>"}, {10, 5, "two"}, {0, 2, "left of a logarithmic axis"}}, "red", "name");
  const std::string svg = plot.svg();
  size_t circles = 0;
  for (size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1)) ++circles;
  CHECK(circles == 2);
  CHECK(svg.find("&lt;one&gt;") != std::string::npos);
}
