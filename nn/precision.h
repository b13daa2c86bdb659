// Which number format each layer of a transformer multiplies in: data, not code. One file is read by the
// trainer (rounding in the midst of training) and by the fast runtime (real kernels), and written by the
// search.
//
//   { "kind": "rivulet precision", "schema": 1, "name": "...",
//     "rules": [ {"choice": "fp8"},                                    // every layer but the gates
//                {"layers": ["sa_q", "ffn_in"], "blocks": [6, 7], "t": [900, 1000], "choice": "nvfp4+lr32"}
//                ],
//     "notes": {...} }                                                 // anything; kept, not read
//
// Later rules win. A rule without "layers" means every layer but sa_gate, without "blocks" every block,
// without "t" every timestep; t is inclusive at both ends and is the network's, 0..1000 (0: the pass that
// writes the memory). ca_kv is computed once per prompt, so a rule with "t" cannot name it.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "nn/config.h"
#include "nn/linear.h"
#include "ops/quantize.h"

namespace rivulet {

// The layers of a block that have a choice. scores is attention itself (q k^T and p v), of softmax blocks.
enum class Layer : uint8_t {
  sa_q,
  sa_k,
  sa_v,
  sa_gate,
  sa_o,
  scores,
  ca_q,
  ca_kv,
  ca_o,
  ffn_in,
  ffn_out,
  ffn_t
};
inline constexpr int kLayers = 12;
const char* name_of(Layer layer);
Layer layer_named(const std::string& name);  // throws, and lists the names

// "bf16" (as the model is), "fp8_tensor", "fp8", "mxfp8", "nvfp4", "nvfp4_46"; "+lr32" adds a low-rank branch
// of rank 32 in the model's own dtype that carries the largest part of the weight; "+w" keeps the weight
// alone in the format, the activation stays as it is; "+fast" lets E4M3 sums stay in Hopper's tensor cores at
// 14 bits (ops/quantized_linear.h; the plain transformer sums as always); "+static" gives activations in
// fp8_tensor the scale that was measured beforehand, where the fast transformer runs. scores takes bf16 or
// fp8.
struct Choice {
  Format format = Format::bf16;
  int64_t rank = 0;
  bool weight_only = false;
  bool fast_sums = false;
  bool static_scale = false;

  bool plain() const { return format == Format::bf16; }
  // nvfp4_46 sweeps the scales of weights: that is done once.
  Format weight_format() const { return format == Format::nvfp4_46 ? Format::nvfp4_swept : format; }
  friend bool operator==(const Choice&, const Choice&) = default;
  friend auto operator<=>(const Choice&, const Choice&) = default;
};
std::string name_of(const Choice& choice);
Choice choice_named(const std::string& name);

// The choices of one block in one pass.
using BlockChoices = std::array<Choice, kLayers>;
inline const Choice& of(const BlockChoices& c, Layer layer) { return c[size_t(layer)]; }

class Policy {
 public:
  struct Rule {
    std::vector<Layer> layers;    // empty: all but sa_gate
    std::vector<int64_t> blocks;  // empty: all
    double t_low = 0, t_high = 1000;
    Choice choice;
  };

  Policy() = default;  // everything as the model is
  static Policy read(const std::string& path);
  static Policy from_json(const Json& json, const std::string& source);
  Json to_json() const;
  void write(const std::string& path) const;

  std::string name;
  std::vector<Rule> rules;
  Json notes = Json::object();

  bool plain() const;  // no rule asks for anything but bf16
  Choice at(int64_t block, Layer layer, double t) const;
  BlockChoices at(int64_t block, double t) const;
  // Whether any rule covers a part of the timesteps alone.
  bool depends_on_t() const;
  bool has_static_scales() const;
  // Throws when a rule names a block at or beyond `depth`, or scores of a block that has no softmax.
  void check_fits(int64_t depth, const std::vector<int64_t>& softmax_blocks) const;
};

// A weight made ready for a choice: rounded, with its low-rank branch split off. In the dtype of the weight.
struct RoundedWeight {
  Tensor matrix;    // [N, K]
  Tensor up, down;  // [N, r] and [r, K]; undefined for rank 0
};
// w [N, K], or [..., K]: groups run along the last dim. Without a low-rank branch the gradient passes
// straight through.
RoundedWeight round_weight(const Tensor& w, const Choice& choice);

// w = up down + rest, where up [N, r] and down [r, K] (in the dtype of w) carry the largest part of w, and
// rest (f32) what is left, also of their rounding. w [..., K] as [N, K].
struct LowRank {
  Tensor up, down, rest;
};
LowRank split_low_rank(const Tensor& w, int64_t rank);

// Rounded weights by (block, layer, choice), kept between passes while the weights stand still. Plain memory:
// whoever changes a weight clears it.
class RoundedWeights {
 public:
  using Key = std::tuple<int64_t, Layer, Choice>;
  const RoundedWeight& get(const Key& key, const Tensor& weight);
  void clear() { kept_.clear(); }

 private:
  std::map<Key, RoundedWeight> kept_;
};

// Looks at every product that has a choice, for measurements: its result y, and as(choice), the result in
// another choice. What it returns takes the place of y.
using ProductHook = std::function<Tensor(int64_t block, Layer layer, const Tensor& y,
                                         const std::function<Tensor(const Choice&)>& as)>;

// What a block's layers are told: the choices of this pass, which block it is, and where rounded weights are
// kept (null: they are made anew in each call, on the tape). A null pointer to one means "as the model is".
struct BlockPrecision {
  int64_t block = 0;
  BlockChoices choices{};
  RoundedWeights* weights = nullptr;
  const ProductHook* hook = nullptr;

  const Choice& at(Layer layer) const { return of(choices, layer); }
};

// product(p) is the result of `layer` under p; the hook is asked about it where there is one.
Tensor hooked(const BlockPrecision* precision, Layer layer,
              const std::function<Tensor(const BlockPrecision*)>& product);
// Weights and activations of products that are not a Linear.
RoundedWeight weight_as(const BlockPrecision* precision, Layer layer, const Tensor& w);
Tensor activation_as(const BlockPrecision* precision, Layer layer, const Tensor& x);

// An activation that several layers read: rounded once for each format.
class SharedInput {
 public:
  SharedInput(const BlockPrecision* precision, const Tensor& x) : precision(precision), x(x) {}
  const Tensor& as(Layer layer);

  const BlockPrecision* precision;
  const Tensor x;

 private:
  std::array<Tensor, kFormats> rounded_;
};

// l(x) in the format chosen for `layer`: activation and weight rounded, product and sum as always.
Tensor linear_as(SharedInput& x, Layer layer, const Linear& l);

}  // namespace rivulet
