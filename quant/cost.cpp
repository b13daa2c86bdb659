#include "quant/cost.h"

#include <cmath>

namespace rivulet {
namespace {

// The two nvfp4 formats run on the same kernels; what differs is how the scales were chosen.
Format speed_of(Format format) {
  return format == Format::nvfp4_46 || format == Format::nvfp4_swept ? Format::nvfp4 : format;
}

double ceil_div(int64_t a, int64_t b) { return double((a + b - 1) / b); }

}  // namespace

CostModel CostModel::read(const std::string& path) { return from_json(read_json(path), path); }

CostModel CostModel::from_json(const Json& json, const std::string& source) {
  CostModel m;
  m.json_ = json;
  Fields f(json, source);
  f.required("name", m.name_);
  f.choice("kind", m.kind_, {"bits", "roofline", "table"});
  f.choice("source", m.source_, {"measured", "model", "definition"});
  f.required("unit", m.unit_);
  f.optional("note", m.note_);
  if (m.kind_ != "table") {
    Fields formats = f.object("formats");
    for (const Format format :
         {Format::bf16, Format::fp8_tensor, Format::fp8, Format::mxfp8, Format::nvfp4}) {
      if (!formats.has(name_of(format))) continue;
      Fields r = formats.object(name_of(format));
      Rate& rate = m.rates_[format];
      r.required("bits", rate.bits, above(0));
      if (m.kind_ == "roofline") {
        r.required("flops_per_clock", rate.flops_clock, above(0));
        r.required("efficiency", rate.efficiency, between(0.01, 1));
        r.required("tile_k", rate.tile_k, between(1, 4096));
      }
      r.done();
    }
    formats.done();
  }
  if (m.kind_ == "roofline") {
    f.required("multiprocessors", m.processors_, above(0));
    f.required("clock_ghz", m.clock_ghz_, above(0));
    f.required("gigabytes_per_second", m.gigabytes_s_, above(0));
    f.required("launch_us", m.launch_us_, at_least(0));
    f.optional("tile", m.tile_, between(1, 4096));
  }
  if (m.kind_ == "table") {
    for (Fields& row : f.objects("products")) {
      ProductShape s;
      std::string format;
      double us = 0;
      row.required("rows", s.rows, at_least(1));
      row.required("out", s.out, at_least(1));
      row.required("in", s.in, at_least(1));
      row.required("format", format);
      row.required("us", us, above(0));
      row.done();
      m.rates_[format_named(format)];
      m.products_[{s, format_named(format)}] = us;
    }
    for (Fields& row : f.objects("copies")) {
      int64_t rows = 0, in = 0;
      std::string format;
      double us = 0;
      row.required("rows", rows, at_least(1));
      row.required("in", in, at_least(1));
      row.required("format", format);
      row.required("us", us, at_least(0));
      row.done();
      m.copies_[{rows, in, format_named(format)}] = us;
    }
    f.raw("measured_on");
  }
  f.done();
  check(m.rates_.count(Format::bf16) != 0, source, ": bf16 has no cost");
  return m;
}

bool CostModel::knows(const Choice& choice) const {
  return rates_.count(speed_of(choice.format)) != 0 && !(choice.weight_only && kind_ != "table");
}

const CostModel::Rate& CostModel::rate(Format format) const {
  const auto found = rates_.find(speed_of(format));
  check(found != rates_.end(), "cost file ", name_, ": has no ", name_of(format));
  return found->second;
}

double CostModel::one_product(const ProductShape& s, Format format) const {
  const Rate& r = rate(format);
  const double flops = 2 * double(s.rows) * double(s.out) * double(s.in);
  if (kind_ == "bits") return 1e-9 * flops * r.bits / 16;
  if (kind_ == "roofline") {
    const double tiles = ceil_div(s.rows, tile_) * ceil_div(s.out, tile_);
    const double waves = std::ceil(tiles / processors_);
    const double depth = ceil_div(s.in, r.tile_k) * double(r.tile_k);
    const double math_us =
        2 * double(tile_ * tile_) * depth * waves / (r.flops_clock * clock_ghz_ * 1e3) / r.efficiency;
    const double bytes =
        (double(s.rows * s.in) + double(s.out * s.in)) * r.bits / 8 + 2 * double(s.rows * s.out);
    return std::max(math_us, bytes / (gigabytes_s_ * 1e3)) + launch_us_;
  }
  const auto found = products_.find({s, speed_of(format)});
  check(found != products_.end(), "cost file ", name_, ": no ", name_of(format), " product of ", s.rows,
        " rows, ", s.out, " out, ", s.in, " in was measured");
  return found->second;
}

double CostModel::product(const ProductShape& s, const Choice& choice) const {
  double cost = one_product(s, choice.format);
  if (choice.rank > 0) {
    const int64_t rank = std::min({choice.rank, s.out, s.in});
    cost +=
        one_product({s.rows, rank, s.in}, Format::bf16) + one_product({s.rows, s.out, rank}, Format::bf16);
  }
  return cost;
}

double CostModel::scores(const ProductShape& s, const Choice& choice) const {
  const Rate& r = rate(choice.format);
  const double flops = 2 * double(s.rows) * double(s.out) * double(s.in);
  if (kind_ == "bits") return 1e-9 * flops * r.bits / 16;
  if (kind_ == "roofline")
    return flops / (processors_ * r.flops_clock * clock_ghz_ * 1e3) / r.efficiency + launch_us_;
  return one_product(s, choice.format);
}

double CostModel::copy(int64_t rows, int64_t in, const Choice& choice) const {
  if (choice.plain() || choice.weight_only) return 0;
  const Format format = speed_of(choice.format);
  if (kind_ == "bits") return 0;
  // Made by the kernel that makes the activation: what it costs is one more store.
  if (kind_ == "roofline") return double(rows * in) * rate(format).bits / 8 / (gigabytes_s_ * 1e3);
  const auto found = copies_.find({rows, in, format});
  check(found != copies_.end(), "cost file ", name_, ": making the ", name_of(format), " copy of ", rows,
        " by ", in, " was not measured");
  return found->second;
}

}  // namespace rivulet
