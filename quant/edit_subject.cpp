#include "quant/edit_subject.h"

#include <cmath>
#include <cstdio>

#include "ops/elementwise.h"
#include "ops/reduce.h"

namespace rivulet {
namespace {

// The paper's clips last 30 s: so many steady chunks share the keys and values of one prompt.
constexpr double kChunksOfPrompt = 30;

struct Prepared {
  std::string instruction;
  Tensors source;  // latents of each chunk
  uint64_t seed = 0;
  std::vector<StreamState> before;  // the reference's memory before each chunk
};

// FNV-1a over whole words: names contents, not a defence.
uint64_t hash_bytes(uint64_t hash, const void* data, size_t bytes) {
  const unsigned char* p = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3u;
  return hash;
}
uint64_t hash_tensor(uint64_t hash, const Tensor& t) {
  const Tensor dense = t.detach().to(Device::cpu).contiguous();
  return hash_bytes(hash, dense.raw(), size_t(dense.bytes()));
}

class Runner {
 public:
  Runner(EditModel model, SampleOptions sampling) : model_(std::move(model)), sampling_(std::move(sampling)) {
    model_.dit.rounded = std::make_shared<RoundedWeights>();
  }
  const EditModel& model() const { return model_; }

  void add(const EditClip& clip) {
    const NoGrad off;
    Prepared p{clip.about.instruction, {}, clip.seed, {}};
    const EditModelConfig& c = model_.config();
    int64_t at = 0;
    for (int64_t n = c.first_chunk_frames; at + n <= clip.frames.dim(0); at += n, n = c.dit.chunk_frames)
      p.source.push_back(model_.codec()
                             .encode(clip.frames.slice(0, at, at + n).contiguous())
                             .to(model_.device())
                             .contiguous());
    check(!p.source.empty(), clip.about.name, ": ", clip.frames.dim(0), " frames are less than one chunk");
    const TextContext text = encode(p, {});
    StreamState state;
    for (size_t k = 0; k < p.source.size(); ++k) {
      p.before.push_back(state);
      if (k + 1 < p.source.size()) denoise(p, k, text, p.before[k], &state);
    }
    clips_.push_back(std::move(p));
  }

  EditedClip edit(size_t index, const Policy& policy, bool forced) {
    const NoGrad off;
    const Prepared& p = clips_[index];
    const TextContext text = encode(p, policy);
    EditedClip out;
    StreamState state;
    for (size_t k = 0; k < p.source.size(); ++k) {
      StreamState next;
      out.free.push_back(denoise(p, k, text, state, k + 1 < p.source.size() ? &next : nullptr));
      state = std::move(next);
      // The first chunk has no memory to start from, so both are one.
      if (forced) out.forced.push_back(k == 0 ? out.free[0] : denoise(p, k, text, p.before[k], nullptr));
    }
    return out;
  }

  // Diagonal Fisher scores at the layers' outputs, as automatic quantisers sum them: for each option
  // sum_i (dL/dy_i)^2 (y_i(option) - y_i)^2, over the denoising steps of the first chunk. L is the log
  // likelihood of the network's output under unit noise at an answer drawn from it, so dL/dy = J' noise.
  std::vector<double> fisher(size_t index, const std::vector<PolicyUnit>& units) {
    std::vector<double> scores;
    std::vector<size_t> first;
    for (const PolicyUnit& unit : units) {
      first.push_back(scores.size());
      scores.resize(scores.size() + unit.choices.size() - 1, 0);
    }
    const Prepared& p = clips_[index];
    model_.dit.precision = {};
    Rng probe_rng = Rng{p.seed}.fork(0x66697368);
    double now = 0;  // t of the pass
    int64_t block_now = 0;
    struct Seen {
      Tensor probe;
      std::vector<std::pair<size_t, Tensor>> changes;  // place in scores, what the option changes y by
    };
    std::vector<Seen> seen;
    const ProductHook hook = [&](int64_t block, Layer layer, const Tensor& y, const auto& as) {
      if (block != block_now) return y;
      Seen one{zeros_like(y.detach()), {}};
      for (size_t u = 0; u < units.size(); ++u) {
        if (units[u].block != block || units[u].layer != layer) continue;
        if (layer != Layer::ca_kv && (now < units[u].t_low || now > units[u].t_high)) continue;
        const NoGrad off;
        for (size_t f = 1; f < units[u].choices.size(); ++f)
          one.changes.emplace_back(first[u] + f - 1, as(units[u].choices[f]) - y.detach());
      }
      one.probe.set_requires_grad();
      seen.push_back(one);
      return y + one.probe;
    };
    // One block at a time, so that the changes of all its options fit into memory.
    const SourceLatents source = model_.source(p.source[0]);
    const Device device = model_.device();
    for (block_now = 0; block_now < model_.config().dit.depth; ++block_now) {
      Rng rng = Rng{p.seed}.fork(0);
      const Tensor noise = randn(source.latents.shape(), rng, DType::f32, device);
      const auto velocity = [&](const Tensor& x, double t, double sigma) {
        now = t;
        seen.clear();
        model_.dit.product_hook = hook;
        const Tensor v = model_.velocity(x.detach(), source, full({1}, sigma, DType::f32, device),
                                         full({1}, t, DType::f32, device), model_.encode({p.instruction}));
        model_.dit.product_hook = {};
        backward(v, randn(v.shape(), probe_rng, DType::f32, device));
        for (const Seen& s : seen)
          for (const auto& [place, change] : s.changes) {
            const NoGrad off;
            const Tensor square = (s.probe.grad() * change) * (s.probe.grad() * change);
            for (const double x : square.to_vector()) scores[place] += x;
          }
        return v.detach();
      };
      sample(velocity, noise, sampling_, rng);
    }
    return scores;
  }

 private:
  TextContext encode(const Prepared& p, const Policy& policy) {
    model_.dit.precision = policy;
    return model_.prompt(p.instruction).context;
  }

  Tensor denoise(const Prepared& p, size_t chunk, const TextContext& text, const StreamState& past,
                 StreamState* next) {
    const SourceLatents source = model_.source(p.source[chunk]);
    Rng rng = Rng{p.seed}.fork(chunk);
    const Device device = model_.device();
    const Tensor noise = randn(source.latents.shape(), rng, DType::f32, device);
    const auto velocity = [&](const Tensor& x, double t, double sigma) {
      return model_.velocity(x, source, full({1}, sigma, DType::f32, device),
                             full({1}, t, DType::f32, device), text, &past);
    };
    const Tensor x0 = sample(velocity, noise, sampling_, rng);
    const Tensor total = sum(x0, {0, 1, 2, 3, 4});
    check(std::isfinite(total.item()), "policy search: under the policy \"", model_.dit.precision.name,
          "\" the network gives values that are not finite");
    if (next) *next = model_.remember(x0, p.source[chunk], text, past);
    return x0;
  }

  EditModel model_;
  SampleOptions sampling_;
  std::vector<Prepared> clips_;
};

// dit.md 1: the products of every block, over a steady chunk of `frames` frames of `tokens` tokens.
std::vector<LayerWork> work_of(const DitConfig& c, int64_t tokens, int64_t text_tokens, double passes) {
  using enum Layer;
  const int64_t N = c.chunk_frames * tokens, C = c.width, hidden = c.mlp_ratio * C;
  const int64_t kept = c.cached_chunks < 0 ? 0 : c.cached_chunks;
  std::vector<LayerWork> all;
  for (int64_t block = 0; block < c.depth; ++block) {
    int64_t input = 8 * block;
    const auto add = [&](Layer layer, const ProductShape& s) {
      const double runs = layer == ca_kv ? 1 / kChunksOfPrompt : passes;
      all.push_back({block, layer, s, runs, input, layer == ffn_t ? C : s.in});
    };
    for (const Layer layer : {sa_q, sa_k, sa_v, sa_gate}) add(layer, {N, C, C});
    ++input, add(sa_o, {N, C, C});
    if (c.is_softmax(block)) ++input, add(scores, {N, 2 * (N + kept * N), C});
    ++input, add(ca_q, {N, C, C});
    ++input, add(ca_kv, {text_tokens, 2 * C, C});
    ++input, add(ca_o, {N, C, C});
    ++input, add(ffn_in, {N, 2 * hidden, C});
    ++input, add(ffn_out, {N, C, hidden});
    ++input, add(ffn_t, {N, C, 3 * C});
  }
  return all;
}

}  // namespace

Subject edit_subject(EditModel model, const std::vector<EditClip>& clips, const SampleOptions& sampling) {
  check(!clips.empty(), "policy search: no clips");
  check_steps(sampling.steps);
  Subject s;
  const EditModelConfig config = model.config();
  s.name = config.name;
  s.depth = config.dit.depth;
  s.softmax_blocks = config.dit.softmax_blocks;
  s.times = sampling.steps;
  s.times.push_back(0);
  uint64_t hash = 0xcbf29ce484222325u;
  for (const auto& [name, tensor] : named_tensors(model)) hash = hash_tensor(hash, tensor);
  for (const EditClip& clip : clips) {
    check(clip.frames.dims() == 4 && clip.frames.dim(1) == clips[0].frames.dim(1) &&
              clip.frames.dim(2) == clips[0].frames.dim(2),
          clip.about.name, ": frames of ", clip.frames.shape(), ", the first clip has ",
          clips[0].frames.shape());
    hash = hash_tensor(hash, clip.frames);
    hash = hash_bytes(hash, clip.about.instruction.data(), clip.about.instruction.size());
    hash = hash_bytes(hash, &clip.seed, sizeof clip.seed);
    s.clips.push_back(clip.about);
  }
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  s.fingerprint = text;
  const int64_t patch = config.patch;
  s.layers = work_of(config.dit, (clips[0].frames.dim(1) / patch) * (clips[0].frames.dim(2) / patch),
                     config.instruction_tokens, double(s.times.size()));
  const auto runner = std::make_shared<Runner>(std::move(model), sampling);
  for (const EditClip& clip : clips) runner->add(clip);
  s.edit = [runner](size_t index, const Policy& policy, bool forced) {
    return runner->edit(index, policy, forced);
  };
  s.fisher = [runner](size_t index, const std::vector<PolicyUnit>& units) {
    return runner->fisher(index, units);
  };
  return s;
}

}  // namespace rivulet
