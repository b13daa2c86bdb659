#include "ops/gdn_fused.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/rows.h"

namespace rivulet {
namespace {

void check_inputs(const GdnFusedInputs& in) {
  const Shape& x = in.q.shape();
  check(x.size() == 4 && x.numel() > 0, "gdn_fused: q has shape ", x, ", wanted [B, T, S, C]");
  for (const Tensor* t : {&in.k, &in.v, &in.gate}) {
    check(t->shape() == x, "gdn_fused: a projection has shape ", t->shape(), ", q ", x);
    check(t->dtype() == in.q.dtype(), "gdn_fused: a projection is ", t->dtype(), ", q ", in.q.dtype());
  }
  for (const Tensor* t : {&in.q_norm, &in.k_norm})
    check(t->shape() == Shape{x[3]}, "gdn_fused: a norm weight has shape ", t->shape(), ", q ", x);
  check(in.beta.dims() == 4 && in.beta.shape() == Shape{x[0], x[1], x[2], in.beta.dim(3)},
        "gdn_fused: beta has shape ", in.beta.shape(), ", q ", x);
  const int64_t heads = in.beta.dim(3);
  check(heads > 0 && x[3] % (2 * heads) == 0, "gdn_fused: ", x[3], " channels do not split into ", heads,
        " heads of an even number of channels");
  const int64_t d = x[3] / heads;
  check(in.decay.shape() == Shape{x[0], x[1], heads}, "gdn_fused: decay has shape ", in.decay.shape(),
        ", beta ", in.beta.shape());
  for (const Tensor* t : {&in.cos, &in.sin})
    check(t->shape() == Shape{x[1] * x[2], d / 2}, "gdn_fused: a RoPE table has shape ", t->shape(),
          ", wanted ", Shape{x[1] * x[2], d / 2});
  const Shape kv{x[0], heads, d, d}, z{x[0], heads, d};
  check(!in.start.kv || in.start.kv.shape() == kv, "gdn_fused: start.kv has shape ", in.start.kv.shape(),
        ", wanted ", kv);
  check(!in.start.z || in.start.z.shape() == z, "gdn_fused: start.z has shape ", in.start.z.shape(),
        ", wanted ", z);
}

// The definition, from the ops it is made of.
GdnResult composed(const GdnFusedInputs& in, double key_scale, double norm_eps, float eps) {
  const DType type = accumulate_dtype(in.q.dtype());
  const int64_t B = in.q.dim(0), T = in.q.dim(1), S = in.q.dim(2), C = in.q.dim(3), H = in.beta.dim(3);
  const Shape per_head{B, T, S, H, C / H}, flat{B, T * S, H, C / H};
  const Tensor cos = in.cos.to(type), sin = in.sin.to(type);
  const auto rotate = [&](const Tensor& x) { return rope(x.reshape(flat), cos, sin).reshape(per_head); };
  const Tensor q = relu(rms_norm(in.q.to(type), in.q_norm.to(type), norm_eps));
  const Tensor k = relu(rms_norm(in.k.to(type), in.k_norm.to(type), norm_eps)) * key_scale;
  GdnState start;
  if (in.start.kv) start.kv = in.start.kv.to(type);
  if (in.start.z) start.z = in.start.z.to(type);
  const GdnResult r =
      gdn(q.reshape(per_head), k.reshape(per_head), rotate(q), rotate(k), in.v.to(type).reshape(per_head),
          sigmoid(in.beta.to(type)), in.decay.to(type), start, /*reverse_scan=*/true, eps);
  return {(r.out.reshape({B, T, S, C}) * silu(in.gate.to(type))).to(in.q.dtype()), r.final};
}

// A view that the kernels read in place, or a dense copy.
Tensor aligned_rows(const Tensor& x) {
  constexpr int64_t kPack = 8;  // 16 bytes of bf16
  bool aligned = x.strides()[3] == 1 && reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0;
  for (int i = 0; i < 3; ++i) aligned = aligned && (x.dim(i) == 1 || x.strides()[i] % kPack == 0);
  return aligned ? x : x.clone();
}

// The same inputs as the kernels ask for them.
GdnFusedInputs prepare(const GdnFusedInputs& in) {
  const auto f32 = [](const Tensor& x) { return x ? x.to(DType::f32).contiguous() : x; };
  const auto weights = [&](const Tensor& x) { return x.dtype() == DType::bf16 ? x.contiguous() : f32(x); };
  return {aligned_rows(in.q),
          aligned_rows(in.k),
          aligned_rows(in.v),
          aligned_rows(in.gate),
          weights(in.q_norm),
          weights(in.k_norm),
          f32(in.cos),
          f32(in.sin),
          in.beta.dtype() == DType::bf16 ? in.beta : in.beta.to(DType::f32),
          f32(in.decay),
          {f32(in.start.kv), f32(in.start.z)}};
}

GdnFusedInputs detach(const GdnFusedInputs& in) {
  const auto off = [](const Tensor& x) { return x ? x.detach() : x; };
  return {off(in.q),
          off(in.k),
          off(in.v),
          off(in.gate),
          off(in.q_norm),
          off(in.k_norm),
          in.cos,
          in.sin,
          off(in.beta),
          off(in.decay),
          {off(in.start.kv), off(in.start.z)}};
}

GdnResult by_kernels(const GdnFusedInputs& given, double key_scale, double norm_eps, float eps) {
  const GdnFusedInputs in = prepare(given);
  const int64_t b = in.q.dim(0), t = in.q.dim(1), s = in.q.dim(2), h = in.beta.dim(3), d = in.q.dim(3) / h;
  const auto make = [&](const Shape& shape, DType dtype = DType::f32) {
    return Tensor(shape, dtype, in.q.device());
  };
  GdnFusedSaved saved{.r = make({2, b * t * s}),
                      .beta = make({b * t * s, h}),
                      .angles = make({t * s, d / 2}, DType::i32),
                      .p = make({b, h, t, d, d}, DType::bf16),
                      .p_z = make({b, h, t, d, d}),
                      .m = make({b, h, t, d, d}),
                      .r_m = make({b, h, t, d, d}),
                      .z = make({b, h, t, d}),
                      .r_z = make({b, h, t, d})};
  GdnResult result{make(in.q.shape(), DType::bf16), {make({b, h, d, d}), make({b, h, d})}};
  if constexpr (kHasCuda) cuda::gdn_fused(in, key_scale, norm_eps, eps, result, saved);
  Tensors inputs = {in.q, in.k, in.v, in.gate, in.q_norm, in.k_norm, in.beta, in.decay};
  if (in.start.kv) inputs.push_back(in.start.kv);
  if (in.start.z) inputs.push_back(in.start.z);
  const Tensors outputs = record(
      "gdn_fused", {result.out, result.final.kv, result.final.z}, inputs,
      [in = detach(in), saved, key_scale, eps](const Tensors& dy) -> Tensors {
        const auto like = [](const Tensor& x, DType dtype = DType::f32) {
          return Tensor(x.shape(), dtype, x.device());
        };
        const auto dense = [](const Tensor& x) { return x ? x.contiguous() : x; };
        GdnFusedInputs wide = in;
        wide.q_norm = in.q_norm.to(DType::f32);
        wide.k_norm = in.k_norm.to(DType::f32);
        const Tensor z0 = saved.z.select(2, 0);
        GdnFusedInputs d{.q = like(in.q, DType::bf16),
                         .k = like(in.q, DType::bf16),
                         .v = like(in.q, DType::bf16),
                         .gate = like(in.q, DType::bf16),
                         .q_norm = like(in.q_norm),
                         .k_norm = like(in.k_norm),
                         .cos = {},
                         .sin = {},
                         .beta = like(in.beta),
                         .decay = like(in.decay),
                         .start = {like(saved.m.select(2, 0)), like(z0)}};
        const Tensor dout = dy[0] ? dy[0].contiguous() : zeros(in.q.shape(), DType::bf16, Device::cuda);
        if constexpr (kHasCuda)
          cuda::gdn_fused_backward(wide, key_scale, eps, saved, dout, {dense(dy[1]), dense(dy[2])}, d);
        Tensors grads = {d.q,
                         d.k,
                         d.v,
                         d.gate,
                         d.q_norm.to(in.q_norm.dtype()),
                         d.k_norm.to(in.k_norm.dtype()),
                         d.beta.to(in.beta.dtype()),
                         d.decay};
        if (in.start.kv) grads.push_back(d.start.kv);
        if (in.start.z) grads.push_back(d.start.z);
        return grads;
      });
  return {outputs[0], {outputs[1], outputs[2]}};
}

bool has_kernels(const GdnFusedInputs& in) {
  if constexpr (kHasCuda)
    return in.q.device() == Device::cuda && in.q.dtype() == DType::bf16 &&
           cuda::gdn_fused_takes(in.q.dim(3) / in.beta.dim(3));
  return false;
}

}  // namespace

GdnResult gdn_fused(const GdnFusedInputs& in, double key_scale, double norm_eps, float eps) {
  check_inputs(in);
  return has_kernels(in) ? by_kernels(in, key_scale, norm_eps, eps) : composed(in, key_scale, norm_eps, eps);
}

const OpCase& gdn_fused_case() {
  // Shapes of all inputs for [B, T, S, H, D].
  const auto shapes = [](int64_t b, int64_t t, int64_t s, int64_t h, int64_t d, bool with_start) -> Shapes {
    const Shape x{b, t, s, h * d};
    Shapes list = {x, x, x, x, {h * d}, {h * d}, {t * s, d / 2}, {t * s, d / 2}, {b, t, s, h}, {b, t, h}};
    if (with_start) list.insert(list.end(), {{b, h, d, d}, {b, h, d}});
    return list;
  };
  static const OpCase kCase = {
      .name = "gdn_fused",
      .run = [](const Tensors& in) -> Tensors {
        GdnFusedInputs x{in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9], {}};
        if (in.size() == 12) x.start = {in[10], in[11]};
        const double d = double(2 * in[6].dim(1)), s = double(in[0].dim(2));
        const GdnResult r = gdn_fused(x, 1 / std::sqrt(d * s));
        return {r.out, r.final.kv, r.final.z};
      },
      // The last ones are head dims that the GPU has kernels for.
      .check = {shapes(2, 3, 5, 2, 4, true), shapes(1, 1, 1, 1, 2, true), shapes(1, 2, 3, 2, 6, false),
                shapes(1, 3, 17, 1, 32, true), shapes(2, 1, 2, 1, 64, false), shapes(1, 2, 1, 1, 112, false)},
      .bench = {shapes(1, 3, 880, 20, 112, true), shapes(1, 11, 880, 20, 112, false)},
      .bytes = [](const Shapes& s) { return bytes_of(s) + bytes_of({s[0]}); },
      .flops =
          [](const Shapes& s) {
            const double d = 2 * double(s[6][1]), cells = double(s[9].numel()), tokens = double(s[8].numel());
            return tokens * d * (8 * d + 2) + cells * 4 * d * d * d;
          },
      .fill =
          [](const Shape& shape, int i, Rng& rng, DType dtype) {
            if (i == 4 || i == 5) return rand_uniform(shape, 0.5, 1.5, rng, dtype);
            if (i == 9) return rand_uniform(shape, 0.05, 0.95, rng, dtype);
            if (i == 11) return rand_uniform(shape, 0.5, 1, rng, dtype);
            // Both tables are drawn from one stream of angles, so that they belong together.
            if (i == 6 || i == 7) {
              Rng angles{uint64_t(shape.numel())};
              const Tensor angle = rand_uniform(shape, -3, 3, angles, DType::f64);
              return (i == 6 ? cos(angle) : sin(angle)).to(dtype);
            }
            const Tensor x = randn(shape, rng, dtype);
            // Most queries and keys pass the ReLU: a denominator of next to nothing checks nothing.
            if (i == 0 || i == 1) return ones(shape, dtype).add_in_place(x);
            return i == 10 ? zeros(shape, dtype).add_in_place(x, 1 / std::sqrt(double(shape[2]))) : x;
          },
      .differentiable = {true, true, true, true, true, true, false, false, true, true, true, true},
      // The operands of every product are rounded, and a gate magnifies what a small quotient lost.
      .bf16_tolerance = 0x1p-5,
  };
  return kCase;
}

}  // namespace rivulet
