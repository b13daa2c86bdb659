#include "models/sana_streaming/dit.h"

#include <algorithm>
#include <cmath>

#include "ops/elementwise.h"
#include "ops/modulate.h"
#include "ops/norm.h"
#include "ops/residual_norm.h"
#include "ops/rope.h"

namespace rivulet {
namespace {

constexpr float kBlockNormEps = 1e-6f, kTextNormEps = 1e-5f;
constexpr int64_t kTimeChannels = 256;

// dit.md 1.2: cos then sin of t * 10000^(-i/128); t is truncated to a whole number. In the type of `weight`,
// which is the next to read them.
Tensor time_features(const Tensor& t, const Tensor& weight) {
  const Tensor flat = t.detach().to(Device::cpu).to(DType::f64).contiguous();
  Shape shape = t.shape();
  shape.push_back(kTimeChannels);
  const Tensor e(shape, DType::f32);
  constexpr int64_t half = kTimeChannels / 2;
  for (int64_t n = 0; n < flat.numel(); ++n) {
    const float whole = float(std::trunc(flat.data<double>()[n]));
    float* row = e.data<float>() + n * kTimeChannels;
    for (int64_t i = 0; i < half; ++i) {
      const float angle = whole * std::exp(-std::log(10000.0f) * float(i) / float(half));
      row[i] = std::cos(angle);
      row[half + i] = std::sin(angle);
    }
  }
  return e.to(weight.device()).to(weight.dtype());
}

// The t of a whole batch, for a policy that depends on it.
double one_time(const Tensor& t) {
  const std::vector<double> all = t.to_vector();
  check(std::equal(all.begin() + 1, all.end(), all.begin()), "dit: a policy that depends on t, and t of ",
        all.front(), " to ", all.back(), " in one batch");
  return all.front();
}

// Row i of a modulation table [B, Tm, rows, C], shaped to broadcast over tokens: [B, Tm, 1, C].
Tensor row(const Tensor& table, int64_t i) { return table.slice(2, i, i + 1); }

// f(tensor) for all that a block's memory holds, in a fixed order.
template <class State, class F>
void for_each_tensor(State& s, F&& f) requires std::is_same_v<std::remove_const_t<State>, BlockState> {
  if (s.gdn.kv) f(s.gdn.kv), f(s.gdn.z);
  for (auto& [chunk, kv] : s.window) f(kv.k), f(kv.v);
  if (s.conv_tail) f(s.conv_tail);
}

// The window that chunk `next` may see (dit.md 3.2), of chunks already kept.
bool in_window(const DitConfig& c, int64_t chunk, int64_t next) {
  if (c.cached_chunks < 0) return true;
  if (!c.sink) return chunk >= next - c.cached_chunks;
  return chunk == 0 || chunk >= next - c.cached_chunks + 1;
}

}  // namespace

Block::Block(const DitConfig& c, bool is_softmax, Device device)
    : scale_shift_table({6, c.width}, DType::f32, device),
      softmax(is_softmax),
      cross_attn(c.width, c.heads, device),
      mlp(c.width, c.mlp_ratio * c.width, device) {
  if (softmax)
    attn = SoftmaxAttention(c.width, c.heads, c.variant == "streaming", device);
  else
    gdn = GdnAttention(c.width, c.heads, device);
}

Dit::Dit(const DitConfig& c, Device device)
    : x_embedder({c.width, 2 * c.latent_channels, 1, 1, 1}, true, device),
      t_embedder_0({c.width, kTimeChannels}, true, device),
      t_embedder_2({c.width, c.width}, true, device),
      t_block({6 * c.width, c.width}, true, device),
      y_fc1({c.width, c.caption_channels}, true, device),
      y_fc2({c.width, c.width}, true, device),
      final_linear({c.latent_channels, c.width}, true, device),
      attention_y_norm{Tensor({c.width}, DType::f32, device)},
      final_table({2, c.width}, DType::f32, device),
      config_(c) {
  for (int64_t i = 0; i < c.depth; ++i) blocks.emplace_back(c, c.is_softmax(i), device);
}

Tensor Dit::text_features(const Tensor& text) const {
  const Tensor in = text.to(y_fc1.weight.dtype());
  return rms_norm(y_fc2(gelu_tanh(y_fc1(in))), attention_y_norm.weight, kTextNormEps);
}

TextContext Dit::text_context(const Tensor& text, const Tensor& mask) const {
  check(text.dims() == 3 && text.dim(2) == config_.caption_channels, "dit: text has shape ", text.shape(),
        ", the model takes [B, L, ", config_.caption_channels, "]");
  check(mask.dims() == 2 && mask.dim(0) == text.dim(0) && mask.dim(1) == text.dim(1),
        "dit: text mask has shape ", mask.shape(), " for text ", text.shape());
  const Tensor y = text_features(text);
  TextContext context{{}, mask};
  precision.check_fits(config_.depth, config_.softmax_blocks);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockPrecision here{int64_t(i), precision.at(int64_t(i), 0), rounded.get(),
                              product_hook ? &product_hook : nullptr};
    context.keys.push_back(blocks[i].cross_attn.text_keys(y, &here));
  }
  return context;
}

std::pair<Tensor, Tensor> Dit::timestep(double t) const {
  const Tensor e = time_features(full({1}, t), t_embedder_0.weight);
  const Tensor temb = t_embedder_2(silu(t_embedder_0(e)));
  return {temb, t_block(silu(temb)).reshape({6, config_.width})};
}

// Everything that is the same for all blocks of one pass.
struct Dit::Pass {
  Grid grid;
  Rope rope;
  Tensor t0;  // [B, Tm, 6, C]
  Tensor text_mask;
  int64_t chunk;  // of the frames of this pass
  double time;    // where the policy asks
};

Tensor Dit::self_attention(const Block& block, const Tensor& u, const Pass& pass, const BlockState* past,
                           BlockState* own, const BlockPrecision* here) const {
  if (!block.softmax)
    return block.gdn(u, pass.grid, pass.rope, past ? past->gdn : GdnState{}, own ? &own->gdn : nullptr, here);
  std::vector<KeyValue> window;
  if (past)
    for (const auto& [chunk, kv] : past->window) window.push_back(kv);
  if (!own) return block.attn(u, pass.rope, window, nullptr, here);
  own->window = {{pass.chunk, {}}};
  return block.attn(u, pass.rope, window, &own->window[0].second, here);
}

// `own` receives what the block adds to the memory: its window holds this chunk alone.
Tensor Dit::run_block(const Block& block, const Tensor& h_in, const Pass& pass, const KeyValue& text,
                      const BlockState* past, BlockState* own) const {
  const int64_t index = &block - blocks.data();
  const BlockPrecision chosen{index, precision.at(index, pass.time), rounded.get(),
                              product_hook ? &product_hook : nullptr};
  const BlockPrecision* here = precision.rules.empty() && !product_hook ? nullptr : &chosen;
  const Tensor mod = block.scale_shift_table + pass.t0;
  const Tensor modulated = layer_norm_modulate(h_in, row(mod, 0), row(mod, 1), kBlockNormEps);
  const Tensor h = gate_residual(h_in, row(mod, 2), self_attention(block, modulated, pass, past, own, here));
  const auto [after, u] = gate_residual_norm(h, {}, block.cross_attn(h, text, pass.text_mask, here),
                                             row(mod, 3), row(mod, 4), kBlockNormEps);
  const Tensor branch =
      block.mlp(u, pass.grid, past ? past->conv_tail : Tensor(), own ? &own->conv_tail : nullptr, here);
  return gate_residual(after, row(mod, 5), branch);
}

// All that a block reads of the tape must be an input of checkpoint() to get its gradient, the memory
// included. It also holds the memory by value: the caller's may be another one when the backward comes.
Tensor Dit::run_again_in_backward(const Block& block, const Tensor& h, const Pass& pass, const KeyValue& text,
                                  const BlockState* past, BlockState* own) const {
  Tensors inputs = {h, pass.t0, text.k, text.v};
  if (past) for_each_tensor(*past, [&](const Tensor& t) { inputs.push_back(t); });
  const bool has_past = past != nullptr, has_own = own != nullptr;
  const auto again = [this, &block, pass, has_own, has_past,
                      layout = past ? *past : BlockState{}](const Tensors& in) -> Tensors {
    BlockState memory = layout, added;
    size_t at = 4;
    for_each_tensor(memory, [&](Tensor& t) { t = in[at++]; });
    Pass repeated = pass;
    repeated.t0 = in[1];
    Tensors out = {run_block(block, in[0], repeated, {in[2], in[3]}, has_past ? &memory : nullptr,
                             has_own ? &added : nullptr)};
    if (has_own) for_each_tensor(added, [&](const Tensor& t) { out.push_back(t); });
    return out;
  };
  const Tensors out = checkpoint(again, inputs);
  if (!own) return out[0];
  if (block.softmax)
    own->window = {{pass.chunk, {out[1], out[2]}}};
  else
    own->gdn = {out[1], out[2]};
  own->conv_tail = out[3];
  return out[0];
}

// What the chunk after `chunk` may read: of the window of `past` and of `own` what it may still see.
BlockState Dit::with_window(const BlockState* past, BlockState own, int64_t chunk) const {
  BlockState next = own;
  next.window.clear();
  if (past)
    for (const auto& kept : past->window)
      if (in_window(config_, kept.first, chunk + 1)) next.window.push_back(kept);
  for (const auto& kept : own.window)
    if (in_window(config_, chunk, chunk + 1)) next.window.push_back(kept);
  return next;
}

Tensor Dit::operator()(const Tensor& x, const Tensor& t, const TextContext& text, const StreamState* past,
                       StreamState* next, const BlockHook& hook) const {
  check(x.dims() == 5 && x.dim(1) == 2 * config_.latent_channels, "dit: x has shape ", x.shape(),
        ", the model takes [B, ", 2 * config_.latent_channels, ", T, H, W]");
  const int64_t B = x.dim(0), T = x.dim(2), C = config_.width;
  check(t.dim(0) == B && (t.dims() == 1 || (t.dims() == 2 && t.dim(1) == T)), "dit: t has shape ", t.shape(),
        " for x ", x.shape());
  const Grid grid{T, x.dim(3), x.dim(4), past ? past->frames : 0};
  const auto [cos, sin] = rope_table(grid.first, T, grid.H, grid.W, C / config_.heads);
  const Tensor features = time_features(t.dims() == 1 ? t.unsqueeze(1) : t, t_embedder_0.weight);
  const Tensor temb = t_embedder_2(silu(t_embedder_0(features)));
  const int64_t Tm = temb.dim(1);
  if (next) {
    *next = past ? *past : StreamState{};
    next->blocks.resize(blocks.size());
    next->chunk += 1;
    next->frames += T;
  }
  precision.check_fits(config_.depth, config_.softmax_blocks);
  const Pass pass{grid,
                  {cos.to(x.device()), sin.to(x.device())},
                  t_block(silu(temb)).reshape({B, Tm, 6, C}),
                  text.mask,
                  past ? past->chunk : 0,
                  precision.depends_on_t() ? one_time(t) : 0};

  const Tensor in = x.to(x_embedder.weight.dtype()).permute({0, 2, 3, 4, 1});
  Tensor h = x_embedder(in.reshape({B, T, grid.tokens_per_frame(), -1}));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockState* before = past && past->chunk > 0 ? &past->blocks[i] : nullptr;
    BlockState own;
    h = recompute ? run_again_in_backward(blocks[i], h, pass, text.keys[i], before, next ? &own : nullptr)
                  : run_block(blocks[i], h, pass, text.keys[i], before, next ? &own : nullptr);
    if (next) {
      if (!next->on_tape) for_each_tensor(own, [](Tensor& t) { t = t.detach(); });
      next->blocks[i] = with_window(before, own, pass.chunk);
    }
    if (hook) hook(int64_t(i), h.reshape({B, grid.tokens(), C}));
  }
  const Tensor mod = final_table + temb.unsqueeze(2);  // [B, Tm, 2, C]
  const Tensor out = final_linear(layer_norm_modulate(h, row(mod, 0), row(mod, 1), kBlockNormEps));
  return out.reshape({B, T, grid.H, grid.W, -1}).permute({0, 4, 1, 2, 3});
}

}  // namespace rivulet
