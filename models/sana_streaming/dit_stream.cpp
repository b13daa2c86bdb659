#include "models/sana_streaming/dit_stream.h"

#include <algorithm>
#include <cmath>

#include "ops/attention.h"
#include "ops/depthwise_glu.h"
#include "ops/elementwise.h"
#include "ops/glu.h"
#include "ops/modulate.h"
#include "ops/norm.h"
#include "ops/norm_quantize.h"
#include "ops/norm_rope.h"
#include "ops/residual_norm.h"
#include "ops/rope.h"
#include "ops/shape.h"
#include "ops/temporal_conv.h"

namespace rivulet {
namespace {

constexpr float kBlockNormEps = 1e-6f, kSelfNormEps = 1e-5f, kCrossNormEps = 1e-6f;
constexpr int64_t kBlockRows = 6, kHeadRows = 2;  // modulation vectors

// [1, c, T, H, W] as tokens [T * H * W, c]: a view of x when its strides allow it.
Tensor as_tokens(const Tensor& x) { return x.detach().select(0, 0).permute({1, 2, 3, 0}); }

}  // namespace

struct DitStream::Work {
  int64_t T, N;
  Tensor cos, sin;  // [N, D/2]
  bool remember;
  int64_t slot;
};

// What is alive at once in a pass, in rows of C values for every token. With the fused ops that is the
// largest of: in a softmax block h, q|k|v|gate, q, k, its output and that gated; in the feed-forward layer h,
// its input, six of the expanded activation and three of the gated one, for a chunk's frames at a time.
// Without them the delta net's features and their f32 copies come on top.
static int64_t scratch_for(const FusedDit& model, int64_t tokens, int64_t tokens_at_once) {
  const DitConfig& c = model.dit.config();
  const int64_t D = c.width / c.heads, row = c.width * size_of(model.dtype());
  const bool fused =
      model.device() == Device::cuda && model.dtype() == DType::bf16 && (D == 32 || D == 64 || D == 112);
  constexpr int64_t kSlack = 8 << 20;
  if (!fused) return 40 * tokens * row + kSlack;
  // Codes take half of the room; where a format is emulated, f32 sums and both operands in bf16 come on top.
  const int64_t own = std::max(11 * tokens, 13 * tokens_at_once) * row + kSlack;
  if (model.policy().plain()) return own;
  return own + 24 * tokens_at_once * row + 6 * c.width * c.width * size_of(model.dtype());
}

DitStream::DitStream(const FusedDit& model, const Options& o)
    : model_(model),
      options_(o),
      S_(o.height * o.width),
      N_(S_ * std::max(o.first_frames, model.dit.config().chunk_frames)),
      arena_(o.scratch_bytes ? o.scratch_bytes : scratch_for(model, N_, S_ * model.dit.config().chunk_frames),
             model.device(), Arena::Reuse::yes) {
  check(o.height > 0 && o.width > 0 && o.first_frames > 0, "dit stream: a grid of ", o.height, " x ", o.width,
        " and a first chunk of ", o.first_frames, " frames");
  check(config().cached_chunks >= 0, "dit stream: a window that keeps every chunk grows without end");
  const NoGrad off;
  const DType dtype = model.dtype();
  const Device device = model.device();
  const int64_t C = config().width, nH = config().heads, D = C / nH, c = config().latent_channels;
  x_ = Tensor({N_, c}, dtype, device);
  out_ = Tensor({N_, c}, dtype, device);
  source_ = Tensor({N_, C}, dtype, device);
  cos_ = Tensor({N_, D / 2}, DType::f32, device);
  sin_ = Tensor({N_, D / 2}, DType::f32, device);
  const auto [cos, sin] = rope_table(0, 1, o.height, o.width, D);
  cos_space_ = cos.to(device);
  sin_space_ = sin.to(device);

  const int64_t ring = std::max<int64_t>(0, config().cached_chunks - (config().sink ? 1 : 0));
  for (size_t i = 0; i < model.dit.blocks.size(); ++i) {
    const Block& block = model.dit.blocks[i];
    BlockMemory m;
    m.tail = zeros({1, S_, C}, dtype, device);
    if (block.softmax) {
      const auto slot = [&](int64_t frames) {
        const Shape shape{1, frames * S_, nH, D};
        m.slots.push_back({Tensor(shape, dtype, device), Tensor(shape, dtype, device)});
      };
      if (config().sink) slot(o.first_frames);
      for (int64_t r = 0; r < ring; ++r)
        slot(config().sink ? config().chunk_frames : std::max(o.first_frames, config().chunk_frames));
    } else {
      m.gdn = {zeros({1, nH, D, D}, DType::f32, device), zeros({1, nH, D}, DType::f32, device)};
    }
    memory_.push_back(m);
  }

  const int64_t rows = kBlockRows * config().depth + kHeadRows;
  modulation_ = Tensor({rows, C}, dtype, device);
  step_table_ = Tensor({int64_t(o.steps.size()) + 1, rows, C}, dtype, device);
  for (size_t s = 0; s <= o.steps.size(); ++s) {
    const auto [temb, t0] = model.dit.timestep(s < o.steps.size() ? o.steps[s] : 0.0);
    const Tensor to = step_table_.select(0, int64_t(s));
    for (int64_t i = 0; i < config().depth; ++i)
      to.slice(0, kBlockRows * i, kBlockRows * (i + 1))
          .copy_from(model.dit.blocks[size_t(i)].scale_shift_table.detach() + t0);
    to.slice(0, rows - kHeadRows, rows).copy_from(model.dit.final_table.detach() + temb);
  }
}

void DitStream::set_text(const Tensor& text, const Tensor& mask) {
  check(text.dims() == 3 && text.dim(0) == 1 && mask.shape() == Shape{1, text.dim(1)},
        "dit stream: text has shape ", text.shape(), ", mask ", mask.shape(), "; one prompt is wanted");
  const NoGrad off;
  const std::vector<double> real = mask.to_vector();
  std::vector<Tensor> tokens;
  for (int64_t i = 0; i < text.dim(1); ++i)
    if (real[size_t(i)] != 0) tokens.push_back(text.slice(1, i, i + 1));
  check(!tokens.empty(), "dit stream: the text has no token");
  const Tensor kept = (tokens.size() == size_t(text.dim(1)) ? text : cat(tokens, 1)).detach();
  Operand y = model_.dit.text_features(kept.to(model_.device()).to(model_.dtype()));
  text_ = {{}, ones({1, kept.dim(1)}, DType::u8, model_.device())};
  for (size_t i = 0; i < model_.blocks.size(); ++i) {
    const CrossAttention& c = model_.dit.blocks[i].cross_attn;
    const KeyValue kv = c.split_keys(product(y, c.kv_linear, model_.blocks[i].at(Layer::ca_kv)));
    text_.keys.push_back({kv.k.contiguous(), kv.v.contiguous()});
  }
  graphs_.clear();  // they read the old keys
}

void DitStream::load_rope(int64_t T) {
  const int64_t half = cos_.dim(1), D = 2 * half, in_time = half - 2 * (D / 6);
  const auto [cos, sin] = rope_table(frames_, T, 1, 1, D);
  const auto put = [&](const Tensor& to, const Tensor& time, const Tensor& space) {
    const Tensor grid = to.slice(0, 0, T * S_).reshape({T, S_, half});
    const Tensor there = time.to(model_.device());
    grid.slice(2, 0, in_time).copy_from(there.slice(1, 0, in_time).unsqueeze(1));
    grid.slice(2, in_time, half).copy_from(space.slice(1, in_time, half).unsqueeze(0));
  };
  put(cos_, cos, cos_space_);
  put(sin_, sin, sin_space_);
}

void DitStream::begin_chunk(const Tensor& source) {
  const int64_t T = next_frames();
  check(open_ == 0, "dit stream: a chunk was begun before the one before it ended");
  check(source.shape() == Shape{1, config().latent_channels, T, options_.height, options_.width},
        "dit stream: the source has shape ", source.shape(), ", the next chunk [1, ",
        config().latent_channels, ", ", T, ", ", options_.height, ", ", options_.width, "]");
  check(!text_.keys.empty(), "dit stream: a chunk was begun without a text");
  check(model_.ready(), "dit stream: static scales of policy \"", model_.policy().name,
        "\" were not measured");
  const NoGrad off;
  const int64_t c = config().latent_channels;
  const Linear& embed = model_.dit.x_embedder;
  const Tensor x = x_.slice(0, 0, T * S_);
  x.reshape({T, options_.height, options_.width, c}).copy_from(as_tokens(source));
  {
    const ArenaScope use(arena_);
    source_.slice(0, 0, T * S_)
        .copy_from(linear(x, embed.matrix().detach().slice(1, c, 2 * c), embed.bias.detach()));
  }
  load_rope(T);
  open_ = T;
}

Tensor DitStream::velocity(const Tensor& x, size_t step) {
  check(step < options_.steps.size(), "dit stream: step ", step, " of ", options_.steps.size());
  run_pass(x, step, false);
  const int64_t c = config().latent_channels;
  return out_.slice(0, 0, open_ * S_)
      .reshape({1, open_, options_.height, options_.width, c})
      .permute({0, 4, 1, 2, 3});
}

void DitStream::end_chunk(const Tensor& x0) {
  run_pass(x0, options_.steps.size(), true);
  const int64_t slot = slot_for(chunk_);
  for (BlockMemory& m : memory_)
    if (slot >= 0 && !m.slots.empty()) {
      m.slots[size_t(slot)].frames = open_;
      m.slots[size_t(slot)].chunk = chunk_;
    }
  ++chunk_;
  frames_ += open_;
  open_ = 0;
}

int64_t DitStream::slot_for(int64_t chunk) const {
  const int64_t sink = config().sink ? 1 : 0, ring = std::max<int64_t>(0, config().cached_chunks - sink);
  if (sink && chunk == 0) return 0;
  return ring == 0 ? -1 : sink + (chunk - sink) % ring;
}

void DitStream::run_pass(const Tensor& x, size_t step, bool remember) {
  check(open_ > 0, "dit stream: a pass outside of a chunk");
  check(x.shape() == Shape{1, config().latent_channels, open_, options_.height, options_.width},
        "dit stream: x has shape ", x.shape(), " in a chunk of ", open_, " frames");
  const NoGrad off;
  const int64_t T = open_, slot = slot_for(chunk_);
  x_.slice(0, 0, T * S_)
      .reshape({T, options_.height, options_.width, config().latent_channels})
      .copy_from(as_tokens(x));
  modulation_.copy_from(step_table_.select(0, int64_t(step)));
  // Everything that the work of a pass depends on, but for the contents of its buffers.
  std::vector<int64_t> key = {T, remember, remember ? slot : -1};
  bool full = true;
  for (const BlockMemory& m : memory_)
    for (const Slot& s : m.slots) {
      key.push_back(s.frames);
      full &= s.chunk >= 0;
    }
  const auto work = [&] {
    const ArenaScope use(arena_);
    pass(T, remember, slot);
  };
  const bool repeats = full && T == config().chunk_frames;
  if (!options_.graphs || model_.device() != Device::cuda || hook_ || !repeats || model_.measuring())
    return work();
  CudaGraph& graph = graphs_[key];
  // The first pass of its kind runs eagerly: it may have to choose algorithms.
  if (!graph.captured() && seen_[key]++ == 0) return work();
  if (!graph.captured()) graph.capture(work);
  graph.replay();
}

Tensor DitStream::row(size_t block, int64_t i) const {
  const int64_t at = kBlockRows * int64_t(block) + i;
  return modulation_.slice(0, at, at + 1).reshape({1, 1, 1, config().width});
}

void DitStream::pass(int64_t T, bool remember, int64_t slot) {
  arena_.reset();
  const int64_t C = config().width, N = T * S_, c = config().latent_channels;
  const Work work{T, N, cos_.slice(0, 0, N), sin_.slice(0, 0, N), remember, slot};
  const std::vector<Block>& blocks = model_.dit.blocks;
  const Shape tokens{1, T, S_, C};
  Tensor h =
      linear_add(x_.slice(0, 0, N), model_.dit.x_embedder.matrix().slice(1, 0, c), {}, source_.slice(0, 0, N))
          .reshape(tokens);
  const auto into_block = [&](size_t i, const Tensor& gate, const Tensor& branch) {
    const bool head = i == blocks.size();
    return norm(h, gate, branch, row(i, 0), row(i, 1), head ? nullptr : model_.blocks[i].codes_reader(),
                !head && model_.blocks[i].reads_codes_alone());
  };
  Operand u = into_block(0, {}, {}).u;
  mark("patch embedding, first norm");
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    const FusedBlock& fused = model_.blocks[i];
    const bool last = i + 1 == blocks.size(), trim = last && remember;
    BlockMemory& memory = memory_[i];
    Tensor mixed = block.softmax ? softmax(block, fused, memory, u, work, trim)
                                 : delta_net(block, fused, memory, u, work);
    u = {};
    if (trim) {
      h = h.slice(1, T - 1, T);
      if (!block.softmax) mixed = mixed.slice(1, T - 1, T);
    }
    Operand into_proj(mixed);
    mixed = {};
    Tensor branch =
        product(into_proj, block.softmax ? block.attn.proj : block.gdn.proj, fused.at(Layer::sa_o));
    into_proj = {};
    mark("self proj");
    const auto reader = [&](Layer layer) {
      return fused.at(layer).reads_codes() ? &fused.at(layer) : nullptr;
    };
    Normed sum = norm(h, row(i, 2), branch, {}, {}, reader(Layer::ca_q), false);
    branch = {};
    mark("gate, residual");
    h = sum.h;
    Operand into_cross = sum.u;
    sum = {};
    h = cross(i, h, into_cross);
    u = norm(h, {}, {}, row(i, 3), row(i, 4), reader(Layer::ffn_in), true).u;
    mark("norm, modulate");
    Tensor r = feed_forward(i, u);
    u = {};
    if (trim) {
      memory.tail.copy_from(r.select(1, 0));
      return;
    }
    branch = temporal_product(r, memory.tail, block.mlp.t_conv, fused.at(Layer::ffn_t));
    mark("temporal conv");
    if (remember) memory.tail.copy_from(r.select(1, T - 1));
    r = {};
    Normed next = into_block(i + 1, row(i, 5), branch);
    h = next.h;
    u = next.u;
    mark("gate, residual, norm, modulate");
  }
  out_.slice(0, 0, N).copy_from(model_.dit.final_linear(u.x()).reshape({N, c}));
  mark("output head");
}

DitStream::Normed DitStream::norm(const Tensor& h, const Tensor& gate, const Tensor& branch,
                                  const Tensor& shift, const Tensor& scale, const PackedLayer* reader,
                                  bool alone) const {
  if (reader) {
    const NormQuantized n = norm_quantize(h, gate, branch, shift, scale, kBlockNormEps, !alone,
                                          reader->choice.static_scale ? reader->input_scale : Tensor());
    return {n.h, Operand(n.u, n.h.shape(), n.q)};
  }
  if (branch && shift) {
    const ResidualNorm n = gate_residual_norm(h, gate, branch, shift, scale, kBlockNormEps);
    return {n.h, Operand(n.u)};
  }
  if (branch) {
    const Tensor sum = gate_residual(h, gate, branch);
    return {sum, Operand(sum)};
  }
  return {h, Operand(layer_norm_modulate(h, shift, scale, kBlockNormEps))};
}

Tensor DitStream::delta_net(const Block& block, const FusedBlock& fused, BlockMemory& memory, Operand& u,
                            const Work& work) const {
  const GdnResult result = delta_net_layer(block.gdn, fused, u, work.cos, work.sin, memory.gdn,
                                           [this](const char* piece) { mark(piece); });
  if (work.remember) {
    memory.gdn.kv.copy_from(result.final.kv);
    memory.gdn.z.copy_from(result.final.z);
  }
  mark("delta net");
  return result.out;
}

Tensor DitStream::softmax(const Block& block, const FusedBlock& fused, BlockMemory& memory, Operand& u,
                          const Work& work, bool last_only) const {
  const int64_t C = config().width, nH = block.attn.heads, D = C / nH, N = work.N;
  // Queries and their gates of the last frame alone, if nothing else is wanted of this block.
  const int64_t T = last_only ? 1 : work.T, first = N - T * S_;
  const auto per_token = [&](const Tensor& x) { return x.reshape({1, x.dim(1) * x.dim(2), C}); };
  std::array<Tensor, kParts> p;
  if (last_only) {
    p = fused.project(u, 1, 3);
    Operand own = u.frames(work.T - 1, work.T);
    p[0] = fused.project(own, 0, 1)[0];
    p[3] = fused.project(own, 3, 4)[3];
  } else {
    p = fused.project(u);
  }
  Tensor q = per_token(p[0]), k = per_token(p[1]), v = per_token(p[2]), gate = p[3];
  p = {};
  mark("q|k|v|gate");
  const Shape heads{1, N, nH, D};
  q = rms_norm_rope(q, block.attn.q_norm.weight, work.cos.slice(0, first, N), work.sin.slice(0, first, N),
                    kSelfNormEps);
  k = rms_norm_rope(k, block.attn.k_norm.weight, work.cos, work.sin, kSelfNormEps);
  v = v.reshape(heads);
  mark("q, k norm and rotation");
  Tensors keys, values;
  for (const Slot& s : memory.slots)
    if (s.frames > 0) {
      keys.push_back(s.k.slice(1, 0, s.frames * S_));
      values.push_back(s.v.slice(1, 0, s.frames * S_));
    }
  keys.push_back(k);
  values.push_back(v);
  const Tensor out = attention(q, keys, values, 1 / std::sqrt(double(D)));
  mark("attention");
  if (work.remember && work.slot >= 0) {
    memory.slots[size_t(work.slot)].k.slice(1, 0, N).copy_from(k);
    memory.slots[size_t(work.slot)].v.slice(1, 0, N).copy_from(v);
  }
  const Tensor gated = mul_silu(out.reshape({1, T, S_, C}), gate);
  mark("output gate");
  return gated;
}

Tensor DitStream::cross(size_t index, const Tensor& h, Operand& in) const {
  const CrossAttention& c = model_.dit.blocks[index].cross_attn;
  const FusedBlock& fused = model_.blocks[index];
  const int64_t C = config().width, D = C / c.heads, N = h.dim(1) * h.dim(2);
  Tensor q = product(in, c.q_linear, fused.at(Layer::ca_q));
  in = {};
  mark("cross q");
  q = rms_norm(q, c.q_norm.weight, kCrossNormEps).reshape({1, N, c.heads, D});
  mark("cross q norm");
  Operand out =
      attention(q, text_.keys[index].k, text_.keys[index].v, 1 / std::sqrt(double(D))).reshape(h.shape());
  q = {};
  mark("cross attention");
  const Tensor sum = product(out, c.proj, fused.at(Layer::ca_o), h);
  mark("cross proj, residual");
  return sum;
}

Tensor DitStream::feed_forward(size_t index, const Operand& u) const {
  const GluMbConv& mlp = model_.dit.blocks[index].mlp;
  const FusedBlock& fused = model_.blocks[index];
  const int64_t T = u.shape()[1], C = config().width;
  const auto some = [&](Operand frames) {
    const int64_t n = frames.shape()[1];
    Tensor wide = product(frames, mlp.inverted_conv.conv, fused.at(Layer::ffn_in))
                      .reshape({n, options_.height, options_.width, -1});
    frames = {};
    mark("inverted");
    Operand gated = silu_depthwise_glu(wide, mlp.depth_conv.conv.weight, mlp.depth_conv.conv.bias)
                        .reshape({1, n, S_, -1});
    wide = {};
    mark("depthwise, gate");
    const Tensor r = product(gated, mlp.point_conv.conv, fused.at(Layer::ffn_out));
    mark("point");
    return r;
  };
  // A frame needs no other one here, so a long first chunk needs no more room than a later one.
  const int64_t at_once = config().chunk_frames;
  if (T <= at_once) return some(u);
  const Tensor r({1, T, S_, C}, model_.dtype(), model_.device());
  for (int64_t t = 0; t < T; t += at_once) {
    const int64_t end = std::min(T, t + at_once);
    r.slice(1, t, end).copy_from(some(u.frames(t, end)));
  }
  return r;
}

}  // namespace rivulet
