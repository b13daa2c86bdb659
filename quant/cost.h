// What a product costs in a format: from a file, so that a search can be for a GPU that is not here. Kinds:
//
//   bits      FLOPs times bits over 16: what an ideal machine saves. Units: GFLOP at the speed of bf16.
//   roofline  microseconds from shapes (the mixed-precision specification, 7.3): whole tiles in whole waves
//   over
//             the multiprocessors, or the memory's time where that is longer. A model, and labelled so.
//   table     microseconds measured, by shape and format, with the kernels that make the quantised copy.
//
// { "name": "rtx5090", "kind": "roofline", "source": "model", "unit": "us", "note": "...", ... }
#pragma once

#include <map>
#include <tuple>

#include "nn/precision.h"

namespace rivulet {

// y [rows, out] = x [rows, in] W'
struct ProductShape {
  int64_t rows = 0, out = 0, in = 0;
  friend auto operator<=>(const ProductShape&, const ProductShape&) = default;
};

class CostModel {
 public:
  static CostModel read(const std::string& path);
  static CostModel from_json(const Json& json, const std::string& source);

  const std::string& name() const { return name_; }
  const std::string& unit() const { return unit_; }
  const std::string& source() const { return source_; }  // "measured", "model" or "definition"
  const std::string& note() const { return note_; }
  const Json& json() const { return json_; }

  bool knows(const Choice& choice) const;
  bool knows_scores() const { return kind_ != "table"; }
  // The product itself, with the low-rank branch where there is one. Throws when the format, or in a table
  // the shape, is unknown.
  double product(const ProductShape& shape, const Choice& choice) const;
  // Attention itself: the products of the queries with `out` / 2 keys and of the weights with as many values.
  double scores(const ProductShape& shape, const Choice& choice) const;
  // Making the copy of an activation that products in this format read; 0 where there is none.
  double copy(int64_t rows, int64_t in, const Choice& choice) const;

 private:
  struct Rate {
    double bits = 16;        // a stored value, its share of the scales included
    double flops_clock = 0;  // of one multiprocessor
    double efficiency = 1;
    int64_t tile_k = 64;
  };
  const Rate& rate(Format format) const;
  double one_product(const ProductShape& shape, Format format) const;

  std::string name_, kind_, unit_, source_, note_;
  Json json_;
  std::map<Format, Rate> rates_;
  double processors_ = 0, clock_ghz_ = 0, gigabytes_s_ = 0, launch_us_ = 0;
  int64_t tile_ = 128;
  std::map<std::pair<ProductShape, Format>, double> products_;
  std::map<std::tuple<int64_t, int64_t, Format>, double> copies_;
};

}  // namespace rivulet
