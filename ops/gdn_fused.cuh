// What the bf16 kernels of the fused gated delta net share. Products run on tensor cores as mma.m16n8k16
// (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane l holds rows l / 4 and l / 4 + 8 and the column pairs
// 2 (l % 4) of every 8. The sums of a product may take the channels in any order, so a lane reads its share
// of a row in 16-byte pieces: slot_of() says which channel stands in which column.
#pragma once

#include <cooperative_groups.h>

#include "ops/gdn.cuh"
#include "ops/gdn_fused.h"

namespace rivulet::cuda {

using half_t = __nv_bfloat16;

struct FusedSizes {
  int b, t, s, h, d;
  FusedSizes(const GdnFusedInputs& in)
      : b(int(in.q.dim(0))),
        t(int(in.q.dim(1))),
        s(int(in.q.dim(2))),
        h(int(in.beta.dim(3))),
        d(int(in.q.dim(3)) / h) {}
  int cells() const { return b * h * t; }
  __host__ __device__ int tokens() const { return b * t * s; }
};

// One (batch, head, frame); index = (b * H + h) * T + f.
struct FusedCell {
  int b, h, f, index;
  __device__ FusedCell(int i, const FusedSizes& n)
      : b(i / n.t / n.h), h(i / n.t % n.h), f(i % n.t), index(i) {}
  // Number of the frame's first token among all tokens, and among those of the angle tables.
  __device__ int token(const FusedSizes& n) const { return (b * n.t + f) * n.s; }
  __device__ int place(const FusedSizes& n) const { return f * n.s; }
};

// A strided [B, T, S, C] tensor; at() is the first channel of a cell's head.
struct FusedRows {
  half_t* p;
  int64_t step_b, step_t, step_s;
  explicit FusedRows(const Tensor& x)
      : p(pointer<half_t>(x)), step_b(x.strides()[0]), step_t(x.strides()[1]), step_s(x.strides()[2]) {}
  __device__ half_t* at(const FusedCell& c, int d, int token = 0) const {
    return p + c.b * step_b + c.f * step_t + token * step_s + c.h * d;
  }
};

// To about two units in the last place of f32, and 0 or 1 far out.
__device__ inline float sigmoid_of(float x) {
  float power, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.4426950408889634f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + power));
  return y;
}

// beta logits [B, T, S, H], f32 or bf16.
struct BetaLogits {
  const void* p;
  bool is_half;
  int64_t step_b, step_t, step_s, step_h;
  explicit BetaLogits(const Tensor& x)
      : p(x.raw()),
        is_half(x.dtype() == DType::bf16),
        step_b(x.strides()[0]),
        step_t(x.strides()[1]),
        step_s(x.strides()[2]),
        step_h(x.strides()[3]) {}
  __device__ float beta(int b, int f, int token, int h) const {
    const int64_t i = b * step_b + f * step_t + token * step_s + h * step_h;
    const float x =
        is_half ? __bfloat162float(static_cast<const half_t*>(p)[i]) : static_cast<const float*>(p)[i];
    return sigmoid_of(x);
  }
};

// A weight per channel, f32 or bf16.
struct ChannelWeights {
  const void* p;
  bool is_half;
  explicit ChannelWeights(const Tensor& x) : p(x.raw()), is_half(x.dtype() == DType::bf16) {}
  __device__ float at(int i) const {
    return is_half ? __bfloat162float(static_cast<const half_t*>(p)[i]) : static_cast<const float*>(p)[i];
  }
};

// --- Fragments -------------------------------------------------------------------------------------------
struct Frag {
  uint32_t r[4];
};

__device__ inline uint32_t pack2(float a, float b) {
  const __nv_bfloat162 x = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(x);
}
__device__ inline float2 unpack2(uint32_t x) {
  return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
}
__device__ inline float2 unpack_angle(uint32_t x) {
  return __half22float2(reinterpret_cast<const __half2&>(x));
}

__device__ inline uint32_t address_in_shared(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ inline Frag load_frag(const half_t* p) {
  Frag f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(address_in_shared(p))
               : "memory");
  return f;
}
__device__ inline Frag load_frag_transposed(const half_t* p) {
  Frag f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(address_in_shared(p))
               : "memory");
  return f;
}
__device__ inline void mma(float* c, const Frag& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

// Rows of D values in shared memory lie D + 8 apart: eight rows of an ldmatrix then meet all 32 banks.
__host__ __device__ constexpr int padded(int d) { return d + 8; }

// Fragment of a 16 x 16 block of X' for X[token][channel] in shared memory: rows are channels, columns
// tokens. As a B operand its channels 0..7 are (r[0], r[2]) and 8..15 (r[1], r[3]).
template <int D>
__device__ Frag tokens_frag(const half_t* x, int token, int channel) {
  const int lane = int(threadIdx.x) % 32;
  return load_frag_transposed(x + (token + lane / 16 * 8 + lane % 8) * padded(D) + channel +
                              lane / 8 % 2 * 8);
}
// B operands of two 8-column tiles, n .. n + 15, at depth k .. k + 15: (r[0], r[1]) and (r[2], r[3]).
// By rows: the matrix is stored [n][k]; by columns: [k][n].
template <int D>
__device__ Frag by_rows(const half_t* x, int n, int k) {
  const int lane = int(threadIdx.x) % 32;
  return load_frag(x + (n + lane / 16 * 8 + lane % 8) * padded(D) + k + lane / 8 % 2 * 8);
}
template <int D>
__device__ Frag by_columns(const half_t* x, int n, int k) {
  const int lane = int(threadIdx.x) % 32;
  return load_frag_transposed(x + (k + lane / 8 % 2 * 8 + lane % 8) * padded(D) + n + lane / 16 * 8);
}

// --- A lane's share of a row of D channels ----------------------------------------------------------------
// Lane c of a quad owns channels 8c .. 8c+7 of every 32, and 4c .. 4c+3 of a last 16. They stand in the
// columns 8t + 2c and 8t + 2c + 1 of the tiles t.
template <int D>
__host__ __device__ constexpr int slot_of(int channel) {
  const int base = channel / 32 * 32, x = channel - base;
  if (base + 32 <= D) return base + x % 8 / 2 * 8 + x / 8 * 2 + x % 2;
  return base + x % 4 / 2 * 8 + x / 4 * 2 + x % 2;
}
template <int D>
__host__ __device__ constexpr int channel_of(int slot) {
  const int base = slot / 32 * 32, x = slot - base;
  if (base + 32 <= D) return base + x % 8 / 2 * 8 + x / 8 * 2 + x % 2;
  return base + x % 8 / 2 * 4 + x / 8 * 2 + x % 2;
}
// The first channel of the lane's pair in tile t.
template <int D>
__device__ int owned_channel(int t) {
  return channel_of<D>(8 * t + int(threadIdx.x) % 4 * 2);
}

// The lane's pairs of one row, one word per tile.
template <int D>
struct Share {
  uint32_t w[D / 8];
};
// Row of 2-byte channels, or of one word per pair of channels (the angles; then words = true).
template <int D, bool kWords = false>
__device__ Share<D> load_share(const void* row, bool valid) {
  const int c = int(threadIdx.x) % 4;
  const uint32_t* p = static_cast<const uint32_t*>(row);  // a pair of channels is a word
  Share<D> x;
#pragma unroll
  for (int g = 0; g < D / 32; ++g) {
    const uint4 v = valid ? __ldg(reinterpret_cast<const uint4*>(p + 16 * g + 4 * c)) : uint4{};
    x.w[4 * g] = v.x, x.w[4 * g + 1] = v.y, x.w[4 * g + 2] = v.z, x.w[4 * g + 3] = v.w;
  }
  if constexpr (D % 32 != 0) {
    const uint2 v = valid ? __ldg(reinterpret_cast<const uint2*>(p + D / 32 * 16 + 2 * c)) : uint2{};
    x.w[D / 8 - 2] = v.x, x.w[D / 8 - 1] = v.y;
  }
  return x;
}
template <int D>
__device__ void store_share(void* row, const Share<D>& x) {
  const int c = int(threadIdx.x) % 4;
  uint32_t* p = static_cast<uint32_t*>(row);
#pragma unroll
  for (int g = 0; g < D / 32; ++g)
    *reinterpret_cast<uint4*>(p + 16 * g + 4 * c) = {x.w[4 * g], x.w[4 * g + 1], x.w[4 * g + 2],
                                                     x.w[4 * g + 3]};
  if constexpr (D % 32 != 0)
    *reinterpret_cast<uint2*>(p + D / 32 * 16 + 2 * c) = {x.w[D / 8 - 2], x.w[D / 8 - 1]};
}

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// acc += A X for 16 rows of A in slot order; X [depth slot][column slot] by columns or [column][depth] by
// rows.
template <int D, bool kByRows>
__device__ void rows_product(float (&acc)[D / 8][4], const Frag (&a)[D / 16], const half_t* x) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k)
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      const Frag f = kByRows ? by_rows<D>(x, 16 * n, 16 * k) : by_columns<D>(x, 16 * n, 16 * k);
      mma(acc[2 * n], a[k], f.r[0], f.r[1]);
      mma(acc[2 * n + 1], a[k], f.r[2], f.r[3]);
    }
}

// An accumulator of tile t holds the lane's pair of row `half` (l / 4 + 8 half) in [t][2 half]. As the A
// operand of a next product:
template <int D>
__device__ Frag operand(const float (&acc)[D / 8][4], int k) {
  return {{pack2(acc[2 * k][0], acc[2 * k][1]), pack2(acc[2 * k][2], acc[2 * k][3]),
           pack2(acc[2 * k + 1][0], acc[2 * k + 1][1]), pack2(acc[2 * k + 1][2], acc[2 * k + 1][3])}};
}
template <int D>
__device__ void put_rows(Frag (&a)[D / 16], const Share<D>& row, int half) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) a[k].r[half] = row.w[2 * k], a[k].r[2 + half] = row.w[2 * k + 1];
}

// to[slot(i)][slot(j)] = bf16(value(i, j .. j+3)) for a D x D matrix whose rows are read four at a time, by a
// block of kThreads.
template <int D, int kThreads, class F>
__device__ void fill_slots(half_t* to, F&& value) {
#pragma unroll 4
  for (int i = int(threadIdx.x); i < D * D / 4; i += kThreads) {
    const int row = i / (D / 4), column = i % (D / 4) * 4;
    const float4 x = value(row, column);
    half_t* at = to + slot_of<D>(row) * padded(D);
    *reinterpret_cast<uint32_t*>(at + slot_of<D>(column)) = pack2(x.x, x.y);
    *reinterpret_cast<uint32_t*>(at + slot_of<D>(column + 2)) = pack2(x.z, x.w);
  }
}

// Writes zeros where there is nothing to read.
__device__ inline void copy_16_bytes_async(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address_in_shared(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Asks for the memory at p to be brought near.
__device__ inline void prefetch_to_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Chains of states as in ops/gdn.cuh, with states [B*H, T, D (value), D (key)] and normalisers [B*H, T, D];
// null starts are zeros, null ends are not wanted.
struct FusedChain {
  ChainOrder order;
  const float *add, *add_z, *start, *start_z;
  float *kept, *kept_z, *end, *end_z;
};
void run_fused_chains(const FusedSizes& n, const half_t* p, const float* p_z, const float* decay,
                      const FusedChain& first, const FusedChain* second);

// P, Pz (saved), A (a, [value, key]) and b of every frame.
void sum_frames(const FusedSizes& n, const GdnFusedInputs& in, const GdnFusedSaved& saved, float key_scale,
                float* a, float* b);
// The same on Hopper, where it takes this head dim.
bool sums_frames_by_wgmma(const FusedSizes& n);
void sum_frames_wgmma(const FusedSizes& n, const GdnFusedInputs& in, const GdnFusedSaved& saved,
                      float key_scale, float* a, float* b);

// --- Backward ----------------------------------------------------------------------------------------------
constexpr int kBackWarps = 7, kBackThreads = 32 * kBackWarps, kBackTokens = 16 * kBackWarps;

// What turns a pair of raw channels into features, and gradients back.
struct FeaturePair {
  float2 raw, weight, turn;
  float scale;  // 1 / RMS times what the features are multiplied by
  __device__ float2 plain() const {
    return {fmaxf(raw.x * weight.x, 0.0f) * scale, fmaxf(raw.y * weight.y, 0.0f) * scale};
  }
  __device__ uint32_t turned(float2 f) const {
    return pack2(f.x * turn.x - f.y * turn.y, f.x * turn.y + f.y * turn.x);
  }
  // The gradient of the normed pair, given those of the turned and the plain features.
  __device__ float2 back(float2 dturned, float2 dplain, float factor) const {
    const float x = dturned.x * turn.x + dturned.y * turn.y + dplain.x,
                y = dturned.y * turn.x - dturned.x * turn.y + dplain.y;
    return {raw.x * weight.x > 0 ? x * factor : 0.0f, raw.y * weight.y > 0 ? y * factor : 0.0f};
  }
  __device__ float product(float2 d) const { return d.x * weight.x * raw.x + d.y * weight.y * raw.y; }
};
template <int D>
__device__ FeaturePair feature_pair(const Share<D>& raw, const Share<D>& angle, const float* weight, int t,
                                    float scale) {
  const int channel = owned_channel<D>(t);
  return {unpack2(raw.w[t]), {weight[channel], weight[channel + 1]}, unpack_angle(angle.w[t]), scale};
}

// One 16 x 16 block per (strip of this warp, j): the sum over `depth` rows of X' Y.
template <int D>
__device__ void add_strip(float (&acc)[D / 16][8], const half_t* x, const half_t* y, int depth) {
  const int strip = int(threadIdx.x) / 32;
  if (strip >= D / 16) return;
  for (int k0 = 0; k0 < depth; k0 += 16) {
    const Frag a = tokens_frag<D>(x, k0, 16 * strip);
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      const Frag b = tokens_frag<D>(y, k0, 16 * j);
      mma(acc[j], a, b.r[0], b.r[2]);
      mma(acc[j] + 4, a, b.r[1], b.r[3]);
    }
  }
}
// f(row, column, pair) for the pairs of this warp's strip.
template <int D, class F>
__device__ void for_strip(const float (&acc)[D / 16][8], F&& f) {
  const int strip = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (strip >= D / 16) return;
#pragma unroll
  for (int j = 0; j < D / 16; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      f(16 * strip + lane / 4 + e % 2 * 8, 16 * j + e / 2 * 8 + lane % 4 * 2,
        float2{acc[j][2 * e], acc[j][2 * e + 1]});
}

// Histories of the gradients that reach the states, and what comes of them: dots [B*T*S, H] are the sums of
// w dy x over a head's channels, x the raw k and dy the gradient of the normed one.
struct StateGrads {
  const float *e, *e_z, *l, *l_z;
};
void backward_of_frames(const FusedSizes& n, const GdnFusedInputs& in, const GdnFusedSaved& saved,
                        float key_scale, const StateGrads& states, float* dots, GdnFusedInputs& grads);

// --- Launches ----------------------------------------------------------------------------------------------
inline int processors() {
  int device = 0, count = 0;
  cuda_check(cudaGetDevice(&device));
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}
// Asks for more shared memory than a kernel gets unasked.
template <class... P>
void allow_shared(void (*kernel)(P...), size_t bytes) {
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}
// f.template operator()<D>() for the head dims with kernels.
template <class F>
void dispatch_head(int d, F&& f) {
  if (d == 112) return f.template operator()<112>();
  if (d == 64) return f.template operator()<64>();
  if (d == 32) return f.template operator()<32>();
  fail("gdn_fused: no kernel for head dim ", d);
}

}  // namespace rivulet::cuda
